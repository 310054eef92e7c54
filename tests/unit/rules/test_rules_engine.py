"""Facts about nodes and chains: what is refused, where, and what a run does with a reading."""

import gc
import sys
from typing import Any

import pytest
from aemos_rules.domain import InvalidChain, Node, Reading, RuleChain, StateAssertion, VariableType
from aemos_rules.engine import IDLE_RUN, Activity, CompiledChain, RunResult, compile_chain
from aemos_rules.nodes.registry import KINDS, VariableTypes
from hypothesis import given
from hypothesis import strategies as st

SENSOR = "sensor-abc-123"
OVER_25 = Node("filter", "over 25", {"sensorUUID": SENSOR, "condition": "value > 25"})
FAHRENHEIT = Node("transform", "to fahrenheit", {"action": "convertToFahrenheit"})
WARN = Node("action", "warn", {"action": "sendNotification", "deviceStateId": 8, "newStateValue": "warning"})


def reading(
    value: Any = 25.5, kind: VariableType = "number", sensor: str = SENSOR, name: str = "temperature"
) -> Reading:
    return Reading(9876, 1, 42, "abc-123", 7, sensor, 5, name, kind, value, 1768905000000, b"")


def compiled(*nodes: Node, types: VariableTypes | None = None) -> CompiledChain:
    return compile_chain(RuleChain(1, 1, "High Temperature Alert", True, 1, nodes, False, "", "UTC"), types)


def filtering(condition: str, **more: str) -> Node:
    return Node("filter", "filter", {"sensorUUID": SENSOR, "condition": condition} | more)


def action(**config: Any) -> Node:
    return Node("action", "action", {"action": "sendNotification", "deviceStateId": 8, "newStateValue": "x", **config})


def kinds(family: str) -> str:
    return "must be one of " + ", ".join(sorted(kind for of, kind in KINDS if of == family))


def errors_of(*nodes: Node, types: VariableTypes | None = None) -> list[tuple[str, str]]:
    with pytest.raises(InvalidChain) as refused:
        compiled(*nodes, types=types)
    return refused.value.errors


def test_high_temperature_alert_fires() -> None:
    """The chain of the original design asserts "warning" and converts 25.5 to exactly 77.9."""
    judged = reading(25.5)
    result = compiled(OVER_25, FAHRENHEIT, WARN).run(judged)
    assert result == RunResult(
        "fired",
        (StateAssertion(8, "warning", 1, judged),),
        data={"valueCelsius": 25.5, "valueFahrenheit": 77.9},
    )


def test_what_a_chain_is_about() -> None:
    """The index needs the sensors its filters name, the store the states its actions assert."""
    chain = compiled(OVER_25, filtering("value < 3", sensorUUID="b"), WARN, action(deviceStateId=9))
    assert chain.sensor_uuids == {SENSOR, "b"}
    assert chain.device_state_ids == {8, 9}
    assert not compiled(FAHRENHEIT).sensor_uuids | compiled(FAHRENHEIT).device_state_ids


@pytest.mark.parametrize(
    ("nodes", "judged", "index"),
    [
        ((OVER_25, WARN), reading(25.0), 0),
        ((OVER_25, WARN), reading(30.0, sensor="another"), 0),
        ((filtering("value > 25", variableName="temperature"), WARN), reading(30.0, name="humidity"), 0),
        ((OVER_25, WARN), reading("30", "text"), 0),
        ((OVER_25, WARN), None, 0),
        ((FAHRENHEIT, WARN), None, 0),
        ((OVER_25, filtering("value < 28"), WARN), reading(30.0), 1),
    ],
)
def test_who_stops_a_chain(nodes: tuple[Node, ...], judged: Reading | None, index: int) -> None:
    """No, another sensor, another variable, a type it makes no sense for, and no reading at all."""
    result = compiled(*nodes).run(judged)
    assert result == RunResult("stopped", (), index, nodes[index].name)


@pytest.mark.parametrize(
    ("nodes", "judged", "index", "error"),
    [
        ((filtering("value.a > 1"), WARN), reading({}, "json"), 0, 'Key not found in map : "a"'),
        (
            (filtering("value > 'a'"), FAHRENHEIT),
            reading("b", "text"),
            1,
            "'value' is no number",
        ),
        ((FAHRENHEIT,), reading(True, "boolean"), 0, "'value' is no number"),
        ((WARN, FAHRENHEIT), reading(1e308), 1, "the result is too large"),
        ((OVER_25, WARN), reading(object()), 0, "float() argument must be a string or a real number, not 'object'"),
    ],
)
def test_a_failing_node_is_named_and_has_no_effects(
    nodes: tuple[Node, ...], judged: Reading, index: int, error: str
) -> None:
    """An error ends the run, not the process; what the run asserted before it is dropped."""
    assert compiled(*nodes).run(judged) == RunResult("error", (), index, nodes[index].name, error)


def test_a_bug_in_a_node_is_an_error_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception nobody foresaw names the node and the exception's type only."""

    def broken(*_: object) -> bool:
        raise ZeroDivisionError("/srv/secret.py")

    monkeypatch.setattr("aemos_rules.nodes.actions.SendNotification.apply", broken)
    result = compiled(WARN).run(reading())
    assert result == RunResult("error", (), 0, "warn", "unexpected ZeroDivisionError")


def test_a_schedule_fires_chains_of_actions() -> None:
    """Without a reading the assertion stands at the schedule's instant."""
    result = compiled(WARN).run(None, 5000)
    assert result == RunResult("fired", (StateAssertion(8, "warning", 1, None, 5000),))


def test_an_action_before_a_stop_has_its_effect() -> None:
    """Nodes run in order: a later filter does not take back what an action said."""
    judged = reading(20.0)
    result = compiled(WARN, OVER_25).run(judged)
    assert result == RunResult("stopped", (StateAssertion(8, "warning", 1, judged),), 1, "over 25")


@pytest.mark.parametrize(
    ("celsius", "fahrenheit"),
    [(25.5, 77.9), (37.7, 99.86), (0.1, 32.18), (-40.0, -40.0), (-17.777778, 0.0), (100.0, 212.0), (36.6, 97.88)],
)
def test_fahrenheit_has_no_binary_noise(celsius: float, fahrenheit: float) -> None:
    """Rounded to a millionth of a degree, which no sensor resolves."""
    data = compiled(FAHRENHEIT).run(reading(celsius)).data
    assert data == {"valueCelsius": celsius, "valueFahrenheit": fahrenheit}
    assert str(data["valueFahrenheit"]) == str(fahrenheit)


@pytest.mark.parametrize(
    ("node", "where", "message"),
    [
        (Node("loop", "n", {}), "type", "must be one of action, filter, transform"),
        (Node("transform", "n", {}), "config.action", kinds("transform")),
        (Node("action", "n", {"action": "explode"}), "config.action", kinds("action")),
        (Node("action", "n", {"action": ["sendNotification"]}), "config.action", kinds("action")),
        (Node("transform", "n", {"action": "convertToFahrenheit", "unit": "K"}), "config.unit", "unknown"),
        (filtering("value > 25", sensorUuid="x"), "config.sensorUuid", "unknown"),
        (filtering("value > 25", action="x"), "config.action", "unknown"),
        (Node("filter", "n", {"condition": "value > 25"}), "config.sensorUUID", "required"),
        (Node("filter", "n", {"sensorUUID": SENSOR}), "config.condition", "required"),
        (filtering(" "), "config.condition", "must be an expression in CEL"),
        (filtering("value > 25", variableName=""), "config.variableName", "must be a text of 1 to 255 characters"),
        (
            filtering("value > 25", variableName="x" * 256),
            "config.variableName",
            "must be a text of 1 to 255 characters",
        ),
        (filtering("value >= 1 && foo"), "config.condition", "column 15: unknown name 'foo'"),
        (filtering("value > 1 &&\n foo"), "config.condition", "line 2, column 2: unknown name 'foo'"),
        (filtering("value >"), "config.condition", "column 8: ends too early"),
        (filtering("x" * 5000), "config.condition", "column 4097: longer than 4096 characters"),
        *(
            (action(deviceStateId=bad), "config.deviceStateId", "must be a whole number above 0")
            for bad in (0, -1, 1.5, "8", True, None, float("inf"), float("nan"), 2**53, 10**400)
        ),
        (action(newStateValue=8), "config.newStateValue", "must be a text of 1 to 200 characters"),
        (action(newStateValue="x" * 256), "config.newStateValue", "must be a text of 1 to 200 characters"),
    ],
)
def test_a_mistake_in_a_node_is_located(node: Node, where: str, message: str) -> None:
    """The place is a path into the chain as its author sent it."""
    assert errors_of(OVER_25, node) == [(f"nodes.1.{where}", message)]


def test_all_mistakes_are_reported_together() -> None:
    """One answer holds everything to repair."""
    found = errors_of(Node("filter", "n", {"sensor": 1, "condition": 5}), WARN, Node("x", "n", {}), WARN)
    assert [where for where, _ in found] == [
        "nodes.0.config.sensor",
        "nodes.0.config.sensorUUID",
        "nodes.0.config.condition",
        "nodes.2.type",
        "nodes.3.config.deviceStateId",
    ]


def test_a_chain_is_bounded() -> None:
    """101 nodes are refused."""
    assert errors_of(*[OVER_25] * 101) == [("nodes", "more than 100 nodes")]
    assert compiled(*[OVER_25] * 100).run(reading()).outcome == "fired"


def test_an_id_may_come_as_a_double() -> None:
    """JSON and protobuf Struct know one kind of number: 8.0 is state 8."""
    chain = compiled(action(deviceStateId=8.0))
    assert [str(state) for state in chain.device_state_ids] == ["8"]


@pytest.mark.parametrize(
    ("condition", "more", "types", "expected"),
    [
        ("value > 25", {}, {(SENSOR, "t"): "text"}, "column 7: '>' does not take (text, number)"),
        ("value > 'a'", {}, {(SENSOR, "t"): "number"}, "column 7: '>' does not take (number, text)"),
        ("value > 25", {}, {(SENSOR, "t"): "text", (SENSOR, "n"): "number"}, None),
        (
            "value > 25",
            {"variableName": "t"},
            {(SENSOR, "t"): "text", (SENSOR, "n"): "number"},
            "column 7: '>' does not take (text, number)",
        ),
        ("value > 25", {"variableName": "new"}, {(SENSOR, "t"): "text"}, None),
        ("value > 25", {}, {("another", "t"): "text"}, None),
        ("value.matches('x')", {}, {}, None),
        ("value && foo", {}, {}, "column 10: unknown name 'foo'"),
    ],
)
def test_a_condition_must_make_sense_for_some_variable(
    condition: str, more: dict[str, str], types: dict[tuple[str, str], VariableType], expected: str | None
) -> None:
    """Of the variables it may judge as far as they are known, else of any type there is."""
    node = filtering(condition, **more)
    if expected is None:
        compiled(node, types=types)
    else:
        assert errors_of(node, types=types) == [("nodes.0.config.condition", expected)]


def test_one_condition_judges_variables_of_several_types() -> None:
    """Readings of a type the condition makes no sense for do not pass; the others are judged as their type."""
    chain = compiled(filtering("value > 25"), WARN, types={(SENSOR, "a"): "number", (SENSOR, "b"): "text"})
    outcomes = [
        chain.run(judged).outcome
        for judged in (reading(30.0), reading("30", "text"), reading(True, "boolean"), reading(30, "json"))
    ]
    assert outcomes == ["fired", "stopped", "stopped", "fired"]


VALUES = st.one_of(
    st.tuples(st.just("number"), st.floats(allow_nan=False, allow_infinity=False)),
    st.tuples(st.just("text"), st.text(max_size=20)),
    st.tuples(st.just("boolean"), st.booleans()),
    st.tuples(st.just("json"), st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5)),
)
NODES = st.sampled_from(
    [OVER_25, FAHRENHEIT, WARN, action(deviceStateId=9), filtering("value != 'x'"), filtering("value.a > 1"),
     filtering("value == true", variableName="temperature")]
)  # fmt: skip


@given(st.lists(NODES, max_size=6, unique_by=id), st.none() | VALUES)
def test_a_run_never_raises_and_repeats_exactly(nodes: list[Node], value: tuple[VariableType, Any] | None) -> None:
    """Any chain over any reading ends fired, stopped or error at a node, and the same way again."""
    chain = compiled(*nodes)
    judged = None if value is None else reading(value[1], value[0])
    result = chain.run(judged, 5000)
    assert result == chain.run(judged, 5000)
    assert (result.node_index is None) == (result.outcome == "fired")
    assert bool(result.error) == (result.outcome == "error")
    ran = nodes[: result.node_index]
    expected = sum(node.type == "action" for node in ran) if result.outcome != "error" else 0
    assert len(result.effects) == expected


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_two_demonstration_chains_never_agree(value: float) -> None:
    """Every reading of the sensor fires exactly one of "over 25" and "at most 25"."""
    high, low = compiled(OVER_25, WARN), compiled(filtering("value <= 25"), action(newStateValue="normal"))
    assert {high.run(reading(value)).outcome, low.run(reading(value)).outcome} == {"fired", "stopped"}


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_large_reading_is_not_kept_for_each_chain_it_did_nothing_in(kind: VariableType) -> None:
    """Of an idle run only the beginning of the value stays, and nothing that the garbage collector has to follow."""
    value = "x" * 65_000 if kind == "text" else {"points": [list(range(100))] * 100}
    activity = Activity()
    activity.note(reading(value, kind), RunResult("stopped", (), 0, "over 25"))
    (kept,) = activity.idle
    assert kept[IDLE_RUN.index("reading")] == 9876
    assert sum(map(sys.getsizeof, kept)) < 1_000
    gc.collect()
    assert not gc.is_tracked(kept)


def test_runs_of_one_sensor_share_its_names() -> None:
    """Each reading comes with names of its own; twenty runs of each of 20,000 chains keep one copy."""
    activity = Activity()
    for _ in range(2):
        names = {field: b"a0b1".decode() for field in ("device_uuid", "sensor_uuid")}
        activity.note(reading(20.5)._replace(**names), RunResult("stopped"))
    first, second = activity.idle
    assert first[1] is second[1] is second[2]
