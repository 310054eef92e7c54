"""Facts about chains as graphs: which node runs next, and what is refused with node and field named."""

import pytest
from aemos_rules.domain import InvalidChain, Node, StateAssertion
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.play import T0, Play, act, chain, node, reading

HOT = node("condition", "hot", condition="value > 25")
COLD = node("condition", "cold", condition="value < 0")
BROKEN = node("map", "broken", "transform", values={"x": "value.missing"})


def states(nodes: tuple[Node, ...], connections: tuple[tuple[str, str, str], ...], value: float) -> list[int]:
    result = chain(*nodes, connections=connections).run(reading(value, 1))
    return [effect.device_state_id for effect in result.effects if isinstance(effect, StateAssertion)]


def errors(*nodes: Node, connections: tuple[tuple[str, str, str], ...]) -> list[tuple[str, str]]:
    with pytest.raises(InvalidChain) as refused:
        chain(*nodes, connections=connections)
    return refused.value.errors


def test_each_outcome_has_its_way() -> None:
    """True leads one way, false another; both may meet again, and the node where they meet runs once."""
    nodes = (act("end", 3), HOT, act("yes", 1), act("no", 2))
    ways = (("hot", "true", "yes"), ("hot", "false", "no"), ("yes", "success", "end"), ("no", "success", "end"))
    assert states(nodes, ways, 30) == [1, 3]
    assert states(nodes, ways, 20) == [2, 3]


def test_one_outcome_may_lead_to_several() -> None:
    """A fan-out runs all of them, in the order in which they were written."""
    ways = (("hot", "true", "a"), ("hot", "true", "b"))
    assert states((HOT, act("b", 2), act("a", 1)), ways, 30) == [2, 1]


def test_every_node_without_a_way_to_it_begins() -> None:
    """Two filters judge the same reading, each with what follows."""
    nodes, ways = (HOT, COLD, act("a", 1), act("b", 2)), (("hot", "true", "a"), ("cold", "true", "b"))
    assert states(nodes, ways, 30) == [1]
    assert states(nodes, ways, -5) == [2]
    assert states(nodes, ways, 10) == []


def test_a_failure_may_be_handled() -> None:
    """With a way for it the run goes on and knows the error; without one the run ends, and nothing follows from it."""
    handled = chain(BROKEN, act(), connections=(("broken", "failure", "act"),)).run(reading(1, 1))
    assert (handled.outcome, len(handled.effects)) == ("fired", 1)
    assert "error" in handled.data
    failed = chain(act("before"), BROKEN, connections=(("before", "success", "broken"),)).run(reading(1, 1))
    assert (failed.outcome, failed.node_name, failed.effects) == ("error", "broken", ())


@pytest.mark.parametrize(
    ("value", "outcome", "at"), [(30, "stopped", "hot"), (20, "fired", "")], ids=["no way for true", "false leads on"]
)
def test_an_outcome_without_a_way_stops(value: float, outcome: str, at: str) -> None:
    """A filter that has a way for false only stops what is true."""
    result = chain(HOT, act(), connections=(("hot", "false", "act"),)).run(reading(value, 1))
    assert (result.outcome, result.node_name) == (outcome, at)


@pytest.mark.parametrize(
    ("connections", "expected"),
    [
        ((("hot", "true", "act"), ("hut", "true", "act")), ("connections.1.from", "no node is named 'hut'")),
        ((("hot", "true", "axt"),), ("connections.0.to", "no node is named 'axt'")),
        ((("hot", "success", "act"),), ("connections.0.outcome", "must be one of true, false, failure")),
        ((("act", "true", "cold"),), ("connections.0.outcome", "must be one of success, failure")),
        (
            (("hot", "true", "act"), ("act", "success", "cold"), ("cold", "true", "act")),
            ("nodes.1.name", "'act' is part of a cycle, or behind one"),
        ),
        ((("hot", "true", "act"),), ("nodes.2.name", "'cold' has no connection")),
    ],
)
def test_a_mistake_in_the_graph_is_located(
    connections: tuple[tuple[str, str, str], ...], expected: tuple[str, str]
) -> None:
    """The connection and its field, or the node that can never be reached."""
    assert expected in errors(HOT, act(), COLD, connections=connections)


def test_names_must_tell_nodes_apart() -> None:
    """Where connections or memory hang on names, two nodes of one name are refused."""
    twice = errors(HOT, act("hot"), connections=(("hot", "true", "hot"),))
    assert ("nodes.1.name", "'hot' is the name of an earlier node too") in twice
    with pytest.raises(InvalidChain):
        chain(node("throttle", "x", seconds=1), act("x"))
    assert chain(HOT, HOT).run(reading(30, 1)).outcome == "fired"


@settings(deadline=None)  # other work on the machine is no fault of the nodes
@given(st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["true", "false"]), st.integers(0, 7)), max_size=20))
def test_every_graph_is_refused_or_runs_each_node_once(ways: list[tuple[int, str, int]]) -> None:
    """Any connections between eight filters end, and every node that runs comes after one that led to it."""
    nodes = [node("condition", f"n{i}", condition=f"value > {i}") for i in range(8)]
    connections = tuple((f"n{a}", outcome, f"n{b}") for a, outcome, b in ways)
    try:
        compiled = chain(*nodes, connections=connections)
    except InvalidChain as refused:
        places = [where for where, what in refused.errors if "cycle" not in what and "no connection" not in what]
        return _expect_none(places)
    order = [compiled.nodes[index].name for index in compiled.order]
    assert sorted(order) == [f"n{i}" for i in range(8)]
    assert all(order.index(f"n{a}") < order.index(f"n{b}") for a, _, b in ways)
    assert compiled.run(reading(4, 1)).outcome in ("fired", "stopped")


def _expect_none(found: list[str]) -> None:
    assert not found


def test_a_delay_goes_on_later_in_event_time() -> None:
    """What follows a delay stands at the later time, and a deadline that comes twice asserts the same again."""
    play = Play(chain(node("delay", "wait", "action", seconds=60), act()))
    assert play.send(reading(1, 10)).outcome == "stopped"
    deadline = next(iter(play.deadlines.values()))
    assert [result.outcome for result in play.pass_time(69)] == []
    assert [result.outcome for result in play.pass_time(71)] == ["fired"]
    play.fire(deadline)
    first, second = play.asserted
    assert first.watermark == second.watermark == (reading(1, 70).received_at_ms, reading(1, 10).id, 1)


def test_a_delay_that_restarts_goes_on_once_and_for_the_newest() -> None:
    """A late reading does not begin it anew, nor does a deadline go on that another took the place of."""
    play = Play(chain(node("delay", "wait", "action", seconds=60, restart=True), act()))
    play.send(reading(1, 10))
    first = next(iter(play.deadlines.values()))
    play.send(reading(1, 30))
    play.send(reading(1, 5))
    assert play.fire(first).outcome == "stopped"
    assert [result.outcome for result in play.pass_time(200)] == ["fired"]
    assert [one.watermark[0] for one in play.asserted] == [reading(1, 90).received_at_ms]


def test_a_delay_that_restarts_on_a_schedule() -> None:
    """There is no reading to remember: the last run goes on."""
    play = Play(chain(node("delay", "wait", "action", seconds=60, restart=True), act()))
    for second in (10, 30):
        play.now_ms = T0 + second * 1_000
        play._kept(play.chain.run(None, play.now_ms, play._world()))
    assert [result.outcome for result in play.pass_time(200)] == ["fired"]
    assert [one.watermark[0] for one in play.asserted] == [T0 + 90_000]
