"""A run, looked at: what each node saw and did. Pure, and never on the hot path: a run that is to be explained is run
again, over the memory and the context that it had."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter_ns
from typing import Any, NamedTuple

from .alarms import CLEARED, AlarmAssertion
from .domain import DerivedReading, NodeFailed, Notice, ReportWanted, RuleChain, StateAssertion
from .engine import CompiledChain, RunResult, Step
from .nodes import NodeKind
from .run import Deadline, Remembered, Run, Start, World

_MOST_TEXT = 500


class NodeRun(NamedTuple):
    """What one node did: its outcome is empty when the run ended here without one."""

    name: str
    type: str
    outcome: str
    values: Mapping[str, Any]
    error: str
    microseconds: int


def explained(chain: CompiledChain, start: Start, world: World) -> tuple[RunResult, list[NodeRun]]:
    """The result of a run, and its nodes in the order in which they ran. Never raises."""
    notes: list[NodeRun] = []
    table = [_noting(step, chain.nodes[index], notes) for step, index in zip(chain.table, chain.order, strict=True)]
    return chain.resume(start, world, table), notes


def facts_of(chain: RuleChain, start: Start, result: RunResult) -> dict[str, Any]:
    """What a run is in the contract and in its table, but for its time and its detail."""
    reading = start.reading
    return {
        "rule_chain_id": chain.id,
        "version": chain.version,
        "trigger": start.trigger,
        "data_stream_id": reading.id if reading else 0,
        "device_uuid": reading.device_uuid if reading else "",
        "sensor_uuid": reading.sensor_uuid if reading else "",
        "outcome": result.outcome,
        "error": result.error,
    }


def _noting(step: Step, node: NodeKind, notes: list[NodeRun]) -> Step:
    bit, apply, *masks = step

    def noted(run: Run) -> bool | None:
        values = _seen(node.values, run)
        began = perf_counter_ns()
        outcome, error = "", ""
        try:
            done = apply(run)
            outcome = _word(node, done)
            return done
        except Exception as failure:
            outcome = "failure"
            error = str(failure) if isinstance(failure, NodeFailed) else f"unexpected {type(failure).__name__}"
            raise
        finally:
            spent = (perf_counter_ns() - began) // 1000
            notes.append(NodeRun(node.name, node.family, outcome, values, error[:_MOST_TEXT], spent))

    return (bit, noted, masks[0], masks[1], masks[2])


def _word(node: NodeKind, outcome: bool | None) -> str:
    if outcome is None:
        return ""
    return node.outcomes[0] if outcome else "false"


def _seen(values: Callable[[Run], Mapping[str, Any]], run: Run) -> Mapping[str, Any]:
    known = {"data": dict(run.data)} if run.data else {}
    if run.reading is not None:
        known = {"value": run.reading.value, **known}
    try:
        return _plain({**known, **values(run)})
    except Exception as error:  # what a node shows must never change what it does
        return {**_plain(known), "error": type(error).__name__}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values, whatever a node shows."""
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str), parse_constant=str)
    return plain


def described(effects: Sequence[Any]) -> list[dict[str, Any]]:
    """Effects as people read them."""
    return [_DESCRIBE[type(effect)](effect) for effect in effects if type(effect) in _DESCRIBE]


def _alarm(effect: AlarmAssertion) -> dict[str, Any]:
    if effect.value == CLEARED:
        return {"type": "clearAlarm", "alarmType": effect.type}
    return {
        "type": "raiseAlarm",
        "alarmType": effect.type,
        "severity": effect.value,
        "message": effect.message,
    }


_DESCRIBE: Mapping[type[Any], Callable[[Any], dict[str, Any]]] = {
    StateAssertion: lambda e: {"type": "setDeviceState", "deviceStateId": e.device_state_id, "value": e.value},
    AlarmAssertion: _alarm,
    Notice: lambda e: {"type": "sendNotification", "message": e.message},
    DerivedReading: lambda e: {
        "type": "saveReading",
        "sensorUuid": e.sensor_uuid,
        "variableName": e.variable_name,
        "value": e.value,
    },
    ReportWanted: lambda e: {"type": "generateReport", "title": e.title, "period": e.period},
    Deadline: lambda e: {"type": "deadline", "node": e.cell.node, "dueAtMs": e.due_ms},
    Remembered: lambda e: {"type": "remembered", "node": e.cell.node},
}
