"""A chain played without I/O: readings in, effects out, memory and deadlines kept as a worker keeps them."""

from __future__ import annotations

from typing import Any

from aemos_rules.domain import Connection, Node, Reading, RuleChain
from aemos_rules.engine import CompiledChain, RunResult, compile_chain
from aemos_rules.run import Cell, Deadline, Remembered, World

SENSOR = "sensor-abc-123"
T0 = 1_768_905_000_000  # 2026-01-20T10:30:00Z, a Tuesday


def node(kind: str, name: str = "", family: str = "filter", /, **config: Any) -> Node:
    """A node of a kind; a filter is of SENSOR."""
    if family == "filter" and kind != "schedule":
        config = {"sensorUUID": SENSOR} | config
    chooser = {"kind": kind} if family == "filter" else {"action": kind}
    return Node(family, name or kind, chooser | config)


def act(name: str = "act", state: int = 8, value: str = "warning") -> Node:
    """An action that asserts a state."""
    return node("setDeviceState", name, "action", deviceStateId=state, newStateValue=value)


def chain(*nodes: Node, connections: tuple[tuple[str, str, str], ...] = ()) -> CompiledChain:
    """A compiled chain, by connections if there are any."""
    made = tuple(Connection(*one) for one in connections)
    return compile_chain(RuleChain(1, 1, "chain", True, 1, nodes, False, "", "UTC", connections=made))


def reading(value: Any, seconds: float, number: int = 0, variable: int = 5) -> Reading:
    """A reading so long after T0; its id is the place in time unless it is given."""
    at = T0 + int(seconds * 1000)
    kind = "number" if isinstance(value, (int, float)) else "text"
    return Reading(
        number or int(seconds * 1000) + 1, 1, 42, "abc-123", 7, SENSOR, variable, "temperature", kind, value, at, b""
    )  # type: ignore[arg-type]


class Play:
    """One chain, its memory, and its deadlines; the clock is the event time of the newest reading or deadline."""

    def __init__(self, played: CompiledChain) -> None:
        self.chain = played
        self.memory: dict[Cell, bytes] = {}
        self.deadlines: dict[Cell, Deadline] = {}
        self.now_ms = T0
        self.asserted: list[Any] = []

    def send(self, judged: Reading) -> RunResult:
        """Judges a reading."""
        self.now_ms = max(self.now_ms, judged.received_at_ms)
        return self._kept(self.chain.run(judged, 0, self._world()))

    def pass_time(self, seconds: float) -> list[RunResult]:
        """Lets deadlines come until so long after T0."""
        until, results = T0 + int(seconds * 1000), []
        while due := [deadline for deadline in self.deadlines.values() if deadline.due_ms <= until]:
            first = min(due, key=lambda deadline: deadline.due_ms)
            self.now_ms = max(self.now_ms, first.due_ms)
            results.append(self.fire(first))
        self.now_ms = max(self.now_ms, until)
        return results

    def fire(self, deadline: Deadline) -> RunResult:
        """One deadline comes, perhaps again."""
        if self.deadlines.get(deadline.cell) == deadline:
            del self.deadlines[deadline.cell]
        return self._kept(self.chain.resume(deadline.start, self._world()))

    def outcomes(self, *sent: tuple[Any, float]) -> list[bool]:
        """Whether the chain fired, for each (value, seconds)."""
        return [self.send(reading(value, seconds)).outcome == "fired" for value, seconds in sent]

    def _world(self) -> World:
        return World(self.now_ms, 0, self.memory)

    def _kept(self, result: RunResult) -> RunResult:
        for effect in result.effects:
            if isinstance(effect, Remembered):
                self.memory[effect.cell] = effect.value
            elif isinstance(effect, Deadline) and effect.due_ms:
                self.deadlines[effect.cell] = effect
            elif isinstance(effect, Deadline):
                self.deadlines.pop(effect.cell, None)
            else:
                self.asserted.append(effect)
        return result
