"""A run, looked at: what each node saw and did; and chains tried with readings. Pure, and never on the hot path: a run
that is to be explained is run again, over the memory and the context that it had."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter_ns
from typing import Any, NamedTuple

from .alarms import CLEARED, AlarmAssertion
from .domain import DerivedReading, NodeFailed, Notice, Reading, ReportWanted, RuleChain, StateAssertion
from .engine import CompiledChain, RunResult, Step
from .nodes import NodeKind
from .run import NOTHING_KNOWN, Cell, Context, Deadline, Remembered, Run, Start, World

_MOST_TEXT = 500


class NodeRun(NamedTuple):
    """What one node did: its outcome is empty when the run ended here without one."""

    name: str
    type: str
    outcome: str
    values: Mapping[str, Any]
    error: str
    microseconds: int


class Explained(NamedTuple):
    """A run that was looked at; its nodes in the order in which they ran."""

    chain: RuleChain
    start: Start
    result: RunResult
    nodes: list[NodeRun]

    @property
    def facts(self) -> dict[str, Any]:
        """What it is in the contract and in its table, but for its time and its detail."""
        chain, reading = self.chain, self.start.reading
        return {
            "rule_chain_id": chain.id,
            "version": chain.version,
            "trigger": self.start.trigger,
            "data_stream_id": reading.id if reading else 0,
            "device_uuid": reading.device_uuid if reading else "",
            "sensor_uuid": reading.sensor_uuid if reading else "",
            "outcome": self.result.outcome,
            "error": self.result.error,
        }

    @property
    def detail(self) -> dict[str, Any]:
        """Its nodes, and its effects as people read them."""
        nodes, effects = [node._asdict() for node in self.nodes], self.result.effects
        return {"nodes": nodes, "effects": [_DESCRIBE[type(e)](e) for e in effects if type(e) in _DESCRIBE]}


def explained(chain: CompiledChain, start: Start, world: World) -> Explained:
    """Runs. Never raises."""
    notes: list[NodeRun] = []
    table = [_noting(step, chain.nodes[index], notes) for step, index in zip(chain.table, chain.order, strict=True)]
    return Explained(chain.chain, start, chain.resume(start, world, table), notes)


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


def dry_run(
    chain: CompiledChain, readings: Sequence[Reading], at_ms: int, context: Context = NOTHING_KNOWN
) -> Iterator[Explained]:
    """Runs over the readings in their order, and those of the deadlines in between; without a reading, once at `at_ms`
    as on a schedule. Nothing is carried out, the clock is that of the readings, and memory begins empty."""
    trial = _Trial(chain, context)
    if not readings:
        yield trial.run(Start(None, at_ms), at_ms)
    for reading in readings:
        yield from trial.until(reading.received_at_ms)
        yield trial.run(Start(reading), reading.received_at_ms)


class _Trial:
    """What a chain remembers and waits for while it is tried."""

    def __init__(self, chain: CompiledChain, context: Context) -> None:
        self._chain = chain
        self._context = context
        self._memory: dict[Cell, bytes] = {}
        self._deadlines: dict[Cell, Deadline] = {}

    def until(self, now_ms: int) -> Iterator[Explained]:
        """The runs that deadlines let go on up to now."""
        while due := [deadline for deadline in self._deadlines.values() if deadline.due_ms <= now_ms]:
            first = min(due, key=lambda deadline: deadline.due_ms)
            del self._deadlines[first.cell]
            if first.cell.chain_id == self._chain.chain.id:  # another chain's runs are its own
                yield self.run(first.start, first.due_ms)

    def run(self, start: Start, now_ms: int) -> Explained:
        """One run, and what it leaves behind."""
        run = explained(self._chain, start, World(now_ms, 0, dict(self._memory), self._context))
        for effect in run.result.effects:
            if isinstance(effect, Remembered):
                self._memory[effect.cell] = effect.value
            elif isinstance(effect, Deadline):
                self._deadlines.pop(effect.cell, None)
                if effect.due_ms:
                    self._deadlines[effect.cell] = effect
        return run
