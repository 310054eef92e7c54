"""A chain tried with readings: nothing is carried out, and the clock is that of the readings. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .domain import Reading
from .engine import CompiledChain, RunResult
from .explain import NodeRun, explained
from .run import NOTHING_KNOWN, Cell, Context, Deadline, Remembered, Start, World


class Tried(NamedTuple):
    """One run."""

    start: Start
    result: RunResult
    nodes: list[NodeRun]


def dry_run(
    chain: CompiledChain, readings: Sequence[Reading], at_ms: int, context: Context = NOTHING_KNOWN
) -> Iterator[Tried]:
    """Runs over the readings in their order, and those of the deadlines in between; without a reading, once at `at_ms`
    as on a schedule. Memory begins empty."""
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

    def until(self, now_ms: int) -> Iterator[Tried]:
        """The runs that deadlines let go on up to now."""
        while due := [deadline for deadline in self._deadlines.values() if deadline.due_ms <= now_ms]:
            first = min(due, key=lambda deadline: deadline.due_ms)
            del self._deadlines[first.cell]
            if first.cell.chain_id == self._chain.chain.id:  # another chain's runs are its own
                yield self.run(first.start, first.due_ms)

    def run(self, start: Start, now_ms: int) -> Tried:
        """One run, and what it leaves behind."""
        result, nodes = explained(self._chain, start, World(now_ms, 0, dict(self._memory), self._context))
        for effect in result.effects:
            if isinstance(effect, Remembered):
                self._memory[effect.cell] = effect.value
            elif isinstance(effect, Deadline):
                self._deadlines.pop(effect.cell, None)
                if effect.due_ms:
                    self._deadlines[effect.cell] = effect
        return Tried(start, result, nodes)
