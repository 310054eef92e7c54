"""A run explained says what each node saw; a chain tried dry keeps its own clock and memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aemos.v1 import chain_run_pb2 as pb
from aemos.v1 import rule_chain_pb2
from aemos_core.errors import AemosError, Kind
from aemos_core.identity import Caller, set_caller
from aemos_rules.alarms import AlarmAssertion
from aemos_rules.domain import Node, Reading, RuleChain
from aemos_rules.engine import CompiledChain, compile_chain
from aemos_rules.explain import dry_run, explained
from aemos_rules.run import NOTHING_KNOWN, Context, Start, World
from aemos_rules.run_api import ChainRunServicer

MINUTE = 60_000
S = "sensor-1"


def chain(*nodes: tuple[str, str, dict[str, Any]]) -> CompiledChain:
    made = tuple(Node(kind, name, config) for kind, name, config in nodes)
    return compile_chain(RuleChain(11, 1, "c", True, 3, made, False, "", "UTC"))


def reading(value: Any, at: int = 1, number: int = 1) -> Reading:
    return Reading(number, 1, 7, "d", 3, S, 5, "temperature", "number", value, at, b"")


HOT = chain(
    ("filter", "hot", {"sensorUUID": S, "condition": "value > 25"}),
    ("transform", "fahrenheit", {"action": "convertToFahrenheit"}),
    ("action", "warn", {"action": "setDeviceState", "deviceStateId": 8, "newStateValue": "warning"}),
)


def test_who_stopped_it_and_why() -> None:
    """The node, its outcome, and the value that it saw."""
    _, _, result, nodes = explained(HOT, Start(reading(24.0)), World())
    assert (result.outcome, result.node_name) == ("stopped", "hot")
    assert [(n.name, n.outcome, n.values["value"]) for n in nodes] == [("hot", "false", 24.0)]


def test_what_followed() -> None:
    """Each node in its order, and the effects in words."""
    run = explained(HOT, Start(reading(25.5)), World())
    assert [(n.name, n.outcome) for n in run.nodes] == [("hot", "true"), ("fahrenheit", "success"), ("warn", "success")]
    assert run.nodes[2].values["data"] == {"valueCelsius": 25.5, "valueFahrenheit": 77.9}
    assert run.detail["effects"] == [{"type": "setDeviceState", "deviceStateId": 8, "value": "warning"}]


def test_an_explained_run_ends_as_the_run_itself() -> None:
    """Looking changes nothing."""
    for value in (24.0, 25.5, float("nan")):
        assert explained(HOT, Start(reading(value)), World()).result == HOT.run(reading(value))


def test_a_failure_names_its_node() -> None:
    """With its text."""
    failing = chain(
        ("filter", "divides", {"sensorUUID": S, "condition": "value / 0 > 1 && device.attributes.missing > 1"}),
        ("action", "warn", {"action": "setDeviceState", "deviceStateId": 8, "newStateValue": "warning"}),
    )
    _, _, result, nodes = explained(failing, Start(reading(1.0)), World())
    assert (result.outcome, nodes[-1].name, nodes[-1].outcome) == ("error", "divides", "failure")
    assert nodes[-1].error == result.error


def test_a_dry_run_lets_deadlines_come() -> None:
    """Held for ten minutes: the alarm comes with the deadline, between two readings, when their clock has passed it."""
    freezer = chain(
        ("filter", "too warm", {"kind": "held", "sensorUUID": S, "condition": "value > -15", "seconds": 600}),
        ("action", "alarm", {"action": "raiseAlarm", "alarmType": "freezer", "severity": "critical"}),
    )
    readings = [reading(-10.0, n * 4 * MINUTE + 1, n + 1) for n in range(5)]
    alarms = [
        (tried.start.trigger, effect.value)
        for tried in dry_run(freezer, readings, 0)
        for effect in tried.result.effects
        if isinstance(effect, AlarmAssertion)
    ]
    assert alarms == [("deadline", "critical"), ("reading", "critical"), ("reading", "critical")]


def test_a_dry_run_without_readings_is_one_of_a_schedule() -> None:
    """At the time that it is given."""
    report = chain(("action", "s", {"action": "setDeviceState", "deviceStateId": 8, "newStateValue": "x"}))
    (tried,) = dry_run(report, [], 5 * MINUTE)
    assert (tried.start.trigger, tried.result.outcome, tried.result.effects[0].at_ms) == (
        "schedule",
        "fired",
        5 * MINUTE,
    )


async def test_trying_a_chain_lets_others_have_their_turn() -> None:
    """A thousand windows may close behind each reading: who tries it waits, until its call's time is over, or more
    has run than an answer holds."""
    window = {"action": "window", "sensorUUID": S, "seconds": 1, "everySeconds": 0.001}
    bomb = chain(("transform", "w", window), ("action", "s", {"action": "raiseAlarm", "alarmType": "x"}))

    class Given:
        async def checked(self, _: RuleChain) -> CompiledChain:
            return bomb

        async def judged(self, _: object) -> list[Reading]:
            return [reading(1.0, n * MINUTE + 1, n + 1) for n in range(100)]

        async def fetch(self, _: object) -> Context:
            return NOTHING_KNOWN

    set_caller(Caller(1, 7, "admin"))
    given: Any = Given()
    api = ChainRunServicer(given, given, given, given, given, 1)
    request = pb.DryRunChainRequest(chain=rule_chain_pb2.CreateRuleChainRequest(name="bomb"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await api.DryRunChain(request, given)
    with pytest.raises(AemosError) as refused:
        await api.DryRunChain(request, given)
    assert refused.value.kind is Kind.TOO_LARGE
