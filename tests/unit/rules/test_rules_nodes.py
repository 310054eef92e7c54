"""Facts about nodes that remember: event time decides, whatever order and repetition readings come in."""

import random
from typing import Any

import msgspec
import pytest
from aemos.v1.job_pb2 import CommittedReading
from aemos_rules.domain import InvalidChain, Node, NodeFailed
from aemos_rules.engine import ERRORS_TO_SUSPEND, Activity, RunResult
from aemos_rules.jobs import _is_overtaken, _json
from aemos_rules.nodes import KINDS, node_types
from aemos_rules.run import NOWHERE, Cell, Deadline, Run, World
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.play import T0, Play, act, chain, node, reading

EACH = [
    node("change", amount=2),
    node("hysteresis", **{"raise": 5, "clear": 3}),
    node("held", condition="value > 3", seconds=20),
    node("absence", seconds=20),
    node("repeated", times=3, seconds=30, condition="value > 3"),
    node("throttle", seconds=15),
    node("condition", "previous", condition="value > previous"),
]


def play(*nodes: Node) -> Play:
    return Play(chain(*nodes, act()))


def test_change_by_amount() -> None:
    """The first is false; then what differs enough from the last that was true."""
    sent = play(node("change", amount=2)).outcomes((10, 1), (11, 2), (12, 3), (13, 4), (10, 5), (10, 6))
    assert sent == [False, False, True, False, True, False]


def test_change_by_percent() -> None:
    """Ten percent of the base, in both directions."""
    assert play(node("change", percent=10)).outcomes((100, 1), (109, 2), (110, 3), (98, 4)) == [
        False,
        False,
        True,
        True,
    ]


def test_hysteresis_upwards_and_downwards() -> None:
    """Between the levels it stays as it was."""
    freezer = play(node("hysteresis", **{"raise": -15, "clear": -18}))
    assert freezer.outcomes((-20, 1), (-16, 2), (-15, 3), (-17, 4), (-18, 5), (-16, 6)) == [
        False, False, True, True, False, False
    ]  # fmt: skip
    battery = play(node("hysteresis", **{"raise": 10, "clear": 20}))
    assert battery.outcomes((50, 1), (10, 2), (15, 3), (20, 4)) == [False, True, True, False]


def test_held_with_and_without_another_reading() -> None:
    """It fires when a reading shows that it held long enough, or at the deadline, at the time when it was reached."""
    game = play(node("held", condition="value > 3", seconds=60))
    assert game.outcomes((5, 0), (5, 30)) == [False, False]
    assert [result.outcome for result in game.pass_time(100)] == ["fired"]
    assert game.asserted[0].watermark[0] == T0 + 60_000
    assert game.outcomes((5, 110), (1, 120), (5, 130)) == [True, False, False]
    assert [result.outcome for result in game.pass_time(189)] == []
    assert game.outcomes((5, 191)) == [True]
    assert not game.deadlines


def test_held_is_broken_before_its_deadline() -> None:
    """One reading that does not hold takes the deadline back; a deadline that comes all the same does nothing."""
    game = play(node("held", condition="value > 3", seconds=60))
    game.send(reading(5, 0))
    deadline = next(iter(game.deadlines.values()))
    game.send(reading(1, 30))
    assert (game.deadlines, game.fire(deadline).outcome, game.asserted) == ({}, "stopped", [])


def test_absence_fires_once_for_each_silence() -> None:
    """So long after the last reading, not before, and again only after another reading."""
    game = play(node("absence", seconds=60))
    game.outcomes((1, 0), (1, 50))
    assert [result.outcome for result in game.pass_time(109)] == ["stopped"]
    assert [result.outcome for result in game.pass_time(500)] == ["fired"]
    assert game.asserted[0].watermark[0] == T0 + 110_000
    game.send(reading(1, 600))
    assert [result.outcome for result in game.pass_time(660)] == ["fired"]


@pytest.mark.parametrize("each", [node("absence", seconds=60), node("held", condition="value > 3", seconds=60)])
def test_a_deadline_that_was_lost_is_armed_again(each: Node) -> None:
    """With a run that failed behind it, or while its chain was off: a node does not await it for ever."""
    game = play(each)
    game.outcomes((5, 0), (5, 30))
    game.deadlines.clear()
    if each.name == "held":
        game.outcomes((1, 70), (5, 80), (5, 90))
    else:
        game.send(reading(5, 90))
    assert [result.outcome for result in game.pass_time(200)] == ["fired"]


def test_other_seconds_count_at_once() -> None:
    """A condition that must hold for longer now is not taken for held when the old time is over; a shorter silence is
    noticed."""
    game = play(node("held", condition="value > 3", seconds=60))
    game.send(reading(5, 0))
    game.chain = chain(node("held", condition="value > 3", seconds=3600), act())
    assert [result.outcome for result in game.pass_time(3599)] == ["stopped"]
    assert [result.outcome for result in game.pass_time(3601)] == ["fired"]
    assert game.asserted[0].watermark[0] == T0 + 3_600_000
    game = play(node("absence", seconds=86_400))
    game.send(reading(1, 0))
    game.chain = chain(node("absence", seconds=60), act())
    game.send(reading(1, 10))
    assert [result.outcome for result in game.pass_time(71)] == ["fired"]


@pytest.mark.parametrize(
    ("each", "remembered"),
    [
        (node("held", condition="value > 3", seconds=60), ["held", T0, 1, T0, T0 + 60_000]),
        (node("absence", seconds=60), ["absence", T0, 1, T0, T0 + 60_000]),
        (
            node("window", "window", "transform", seconds=60),
            ["window", T0, 1, 0, T0 + 60_000, [[29481750, 1, 5, 5, 5]]],
        ),
    ],
    ids=lambda each: each.name if isinstance(each, Node) else "",
)
def test_what_is_remembered_keeps_its_places(each: Node, remembered: list[Any]) -> None:
    """Memories and deadlines outlive an update: fields are only added, at the end."""
    game = play(each)
    cell = Cell(0, 1, each.name, "5")
    game.memory[cell] = msgspec.msgpack.encode(remembered)
    game.deadlines[cell] = Deadline(cell, T0 + 60_000, reading(5, 0))
    assert [result.outcome for result in game.pass_time(100)] == ["fired"]


def test_what_another_node_left_under_the_name_puts_nothing_off() -> None:
    """A deadline from before ends, though something newer is stored; its job does not fail."""
    game = play(node("condition", "n", condition="value > previous"))
    game.send(reading(1, 0))
    ((cell, _),) = game.memory.items()
    world = World(T0, 0, game.memory)
    assert not _is_overtaken(game.chain, Deadline(cell, T0 + 1, reading(1, 0)), {5: (T0 + 9, 9)}, world)


def test_repeated_within_a_duration() -> None:
    """The third within ten seconds, and each after it while that holds."""
    game = play(node("repeated", times=3, seconds=10, condition="value > 3"))
    assert game.outcomes((5, 1), (5, 5), (1, 6), (5, 12), (5, 14), (5, 30)) == [False, False, False, False, True, False]


def test_throttle() -> None:
    """At most one in ten seconds of event time."""
    assert play(node("throttle", seconds=10)).outcomes((1, 0.5), (1, 5), (1, 10.4), (1, 10.5), (1, 11)) == [
        True, False, False, True, False
    ]  # fmt: skip


def test_previous_is_the_variables_own() -> None:
    """A condition may compare with the value before; without one it is false."""
    game = play(node("condition", condition="value - previous > 5"))
    assert game.outcomes((10, 1), (16, 2), (20, 3)) == [False, True, False]
    assert game.send(reading(90, 4, variable=6)).outcome == "stopped"


@pytest.mark.parametrize(
    ("seconds", "fires"), [(0, True), (6.4 * 3600, True), (6.6 * 3600, False), (4 * 86_400, False), (7 * 86_400, True)]
)
def test_schedule_by_local_time(seconds: float, fires: bool) -> None:
    """Tuesday 11:30 in Berlin is within weekdays from 8 to 18; the evening and Saturday are not."""
    hours = {"days": ["mon", "tue", "wed", "thu", "fri"], "from": "08:00", "until": "18:00"}
    assert play(node("schedule", timezone="Europe/Berlin", **hours)).outcomes((1, seconds)) == [fires]


def test_schedule_over_midnight() -> None:
    """The night of Tuesday ends on Wednesday morning."""
    night = play(node("schedule", days=["tue"], **{"from": "22:00", "until": "06:00"}))
    assert night.outcomes((1, 11 * 3600), (1, 12 * 3600), (1, 19 * 3600), (1, 20 * 3600)) == [False, True, True, False]


@pytest.mark.parametrize("each", EACH, ids=lambda each: each.name)
@settings(deadline=None)  # other work on the machine is no fault of the nodes
@given(st.data())
def test_repetition_changes_nothing(each: Node, data: st.DataObject) -> None:
    """Whatever was judged comes again, any number of times, anywhere later: nothing is asserted, remembered or due."""
    values = data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=12))
    game = play(each)
    sent = [reading(value, seconds * 7 + 1) for seconds, value in enumerate(values)]
    for number, judged in enumerate(sent):
        game.send(judged)
        before = (dict(game.memory), dict(game.deadlines), list(game.asserted))
        for again in data.draw(st.lists(st.sampled_from(sent[: number + 1]), max_size=3)):
            game.send(again)
        if each.name != "repeated" or all(value > 3 for value in values):
            assert (game.memory, game.deadlines, game.asserted) == before


@settings(deadline=None)  # other work on the machine is no fault of the nodes
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(-50, 50)), min_size=1, max_size=40), st.randoms())
def test_a_window_counts_each_reading_once(sent: list[tuple[int, int]], order: random.Random) -> None:
    """With lateness allowed, any order and any repetition of a minute's readings give the same aggregates."""
    window = node("window", "window", "transform", seconds=10, allowedLatenessSeconds=120)
    readings = [reading(value, seconds, number) for number, (seconds, value) in enumerate(sent, 1)]
    twice = [*readings, *readings]
    order.shuffle(twice)
    game = Play(chain(window, act()))
    for judged in twice:
        game.send(judged)
    closed = [result.data for result in game.pass_time(1_000) if result.outcome == "fired"]
    expected: dict[int, list[int]] = {}
    for seconds, value in sent:
        expected.setdefault(seconds // 10, []).append(value)
    assert [(each["count"], each["sum"], each["min"], each["max"]) for each in closed] == [
        (len(values), sum(values), min(values), max(values)) for _, values in sorted(expected.items())
    ]
    assert [each["windowStart"] for each in closed] == [T0 + pane * 10_000 for pane in sorted(expected)]
    assert len({effect.watermark for effect in game.asserted}) == len(closed)


def test_a_window_closes_by_event_time() -> None:
    """A reading behind its end closes it at once; what comes late is not counted; without readings the clock does."""
    game = Play(chain(node("window", "window", "transform", seconds=10), act()))
    for value, seconds in ((1, 1), (3, 2), (5, 11)):
        game.send(reading(value, seconds))
    (first,) = game.pass_time(11)
    assert (first.data["avg"], first.data["count"], first.data["windowEnd"]) == (2, 2, T0 + 10_000)
    game.send(reading(100, 3))
    (second,) = game.pass_time(60)
    assert (second.data["sum"], second.data["windowStart"]) == (5, T0 + 10_000)


def test_a_window_of_another_length_begins_anew() -> None:
    """Panes have other numbers then: none is closed for ever, and none lies in 1979."""
    game = Play(chain(node("window", "window", "transform", seconds=10), act()))
    game.outcomes((1, 1), (3, 12), (5, 23))
    game.chain = chain(node("window", "window", "transform", seconds=60), act())
    game.outcomes((1, 61), (2, 121))
    fired = [result for result in game.pass_time(300) if result.outcome == "fired"]
    assert [result.data["windowStart"] for result in fired] == [T0 + 60_000, T0 + 120_000]


def test_a_window_whose_deadline_was_lost_closes_all_the_same() -> None:
    """After a quarter of an hour in which it did not come."""
    game = Play(chain(node("window", "window", "transform", seconds=10), act()))
    game.send(reading(1, 1))
    game.deadlines.clear()
    game.send(reading(2, 1_000))
    fired = [result for result in game.pass_time(2_000) if result.outcome == "fired"]
    assert [result.data["windowStart"] for result in fired] == [T0, T0 + 1_000_000]


def test_a_sliding_window() -> None:
    """Thirty seconds, every ten: each reading is in three windows, and the last is closed by the clock."""
    game = Play(chain(node("window", "window", "transform", seconds=30, everySeconds=10), act()))
    for value, seconds in ((1, 5), (2, 15)):
        game.send(reading(value, seconds))
    assert [each.data["sum"] for each in game.pass_time(300)] == [1, 3, 3, 2]


def test_a_backlog_closes_no_window_early() -> None:
    """Readings of an hour ago, judged now, wait for one another as they would have then."""
    game = Play(chain(node("window", "window", "transform", seconds=10), act()))
    game.now_ms = T0 + 3_600_000
    for value, seconds in ((1, 1), (2, 2), (3, 9)):
        game.send(reading(value, seconds))
    assert game.pass_time(3_608) == []
    assert [each.data["sum"] for each in game.pass_time(3_610)] == [6]


@pytest.mark.parametrize(
    ("config", "where"),
    [
        (node("change"), "config.amount"),
        (node("change", amount=1, percent=1), "config.amount"),
        (node("change", amount=0), "config.amount"),
        (node("hysteresis", **{"raise": 5, "clear": 5}), "config.clear"),
        (node("held", condition="value >", seconds=1), "config.condition"),
        (node("held", condition="value > 1", seconds=0), "config.seconds"),
        (node("repeated", times=1, seconds=1), "config.times"),
        (node("schedule", timezone="Mars"), "config.timezone"),
        (node("schedule", **{"from": "25:00"}), "config.from"),
        (node("schedule", days=["someday"]), "config.days"),
        (node("window", "w", "transform", seconds=10, everySeconds=3), "config.everySeconds"),
        (node("map", "m", "transform", values={"a b": "value"}), "config.values"),
        (node("map", "m", "transform", values={"a": "value +"}), "config.values.a"),
        (node("saveReading", "s", "action", variableName="x", value="foo"), "config.value"),
        (node("saveReading", "s", "action", variableName="x" * 201, value="value"), "config.variableName"),
        (node("saveReading", "s", "action", variableName="x ", value="value"), "config.variableName"),
        (act(value="x" * 201), "config.newStateValue"),
    ],
)
def test_mistakes_are_located(config: Node, where: str) -> None:
    """The field of the node, as it is spelled in its configuration."""
    with pytest.raises(InvalidChain) as refused:
        chain(config)
    assert [place for place, _ in refused.value.errors] == [f"nodes.0.{where}"]


@pytest.mark.parametrize(
    ("config", "value", "expected"),
    [
        (node("convertToCelsius", "t", "transform"), 77.9, {"valueFahrenheit": 77.9, "valueCelsius": 25.5}),
        (node("scale", "t", "transform", factor=2, offset=-1, name="twice"), 3, {"twice": 5}),
        (
            node("map", "t", "transform", values={"a": "value * 2", "b": "variableName"}),
            4,
            {"a": 8, "b": "temperature"},
        ),
        (node("map", "t", "transform", values={"o": "{'k': [value, 1]}"}), 4, {"o": {"k": [4, 1]}}),
    ],
)
def test_transforms_add_data(config: Node, value: Any, expected: dict[str, Any]) -> None:
    """What each of them adds."""
    assert chain(config).run(reading(value, 1)).data == expected


def test_every_kind_has_a_schema() -> None:
    """node-types lists each kind with what its configuration must be, down to the word that names it."""
    listed = {(each.type, each.kind): each for each in node_types()}
    assert listed.keys() == KINDS.keys()
    window = listed["transform", "window"].config_schema
    assert {"action", "seconds", "everySeconds", "allowedLatenessSeconds", "sensorUUID"} <= window["properties"].keys()
    assert window["required"] == ["action", "seconds"]
    assert listed["filter", "condition"].config_schema["required"] == ["sensorUUID", "condition"]
    assert all(each.description and each.config_schema["additionalProperties"] is False for each in listed.values())


def test_a_run_that_is_tried_again_fails_once() -> None:
    """An outage between judging and storing does not suspend a chain that failed once."""
    activity, failed = Activity(), RunResult("error", error="missing key")
    for _ in range(2 * ERRORS_TO_SUSPEND):
        activity.note(reading(1, 1), failed)
    assert (len(activity.failing), activity.failed) == (1, 1)
    for second in range(2 * ERRORS_TO_SUSPEND):
        activity.note(reading(1, second), failed)
    assert len(activity.failing) == ERRORS_TO_SUSPEND
    activity.note(reading(1, 99), RunResult("fired"))
    assert not activity.failing


def test_whole_numbers_that_no_deadline_could_keep() -> None:
    """Are rounded in JSON as JavaScript rounds them; a run that makes one fails, and nothing with it."""
    value: Any = _json(CommittedReading(text='{"serial": 36893488147419103232, "n": -5}'))
    assert (value, type(value["serial"]), type(value["n"])) == ({"serial": 2.0**65, "n": -5}, float, int)
    run = Run(chain(act()).chain, reading(1, 1), 0, NOWHERE)
    run.data = {"x": 2**65}
    with pytest.raises(NodeFailed):
        run.arm("wait", 1)
