"""Aggregates over windows of event time.

Time is cut into panes, `everySeconds` long; a window is its last `seconds / everySeconds` panes and closes at the end
of the newest. It waits for late readings until a reading `allowedLatenessSeconds` behind its end came, or nothing came
for as long as that would take. Every window goes on from a deadline, so each closes once, in order, whoever was down.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from msgspec import Meta

from ..domain import InvalidChain
from ..run import Run
from .registry import MAX_SECONDS, Seconds, Transform, VariableTypes
from .remembering import Memory, OfNumber

MOST_PANES = 1_000
MOST_SEEN = 128
"""Newest reading ids remembered in a cell: a repeated one counts once. One that is older than all of them, though so
many newer ones of its variable came, is taken for repeated too: jobs are disordered by two batches at the most."""

LOST_MS = 900_000
"""A deadline that should have come so long ago was lost, with a run that failed or a chain that was off; before, it may
wait behind a backlog, and taking its place with each reading would put it off for ever."""

Lateness: TypeAlias = Annotated[float, Meta(ge=0, le=MAX_SECONDS, description=f"seconds, 0 to {MAX_SECONDS}")]
Pane: TypeAlias = tuple[int, int, float, float, float]
"""(number since 1970, count, sum, min, max)"""


class WindowMemory(Memory, tag="window"):
    """`closed` is the first pane that no closed window ends before; `seen` are ids in order; `due` the
    deadline; `every` the ms of a pane."""

    closed: int = 0
    due: int = 0
    panes: list[Pane] = []  # noqa: RUF012  msgspec copies it
    seen: list[int] = []  # noqa: RUF012
    every: int = 0


class Window(OfNumber, Transform, kind="window"):
    """Aggregates numbers by event time; adds avg, min, max, sum and count, windowStart and windowEnd (ms) when a window
    closes. Tumbling, or sliding when everySeconds is less than seconds."""

    remembers = True

    seconds: Seconds
    every_seconds: Seconds = 0.0
    allowed_lateness_seconds: Lateness = 0.0

    def compile(self, types: VariableTypes) -> None:
        super().compile(types)
        size, every = int(self.seconds * 1000), int((self.every_seconds or self.seconds) * 1000)
        if size % every or size // every > MOST_PANES:
            raise InvalidChain([("everySeconds", f"must divide seconds into 1 to {MOST_PANES} parts")])
        self._every, self._panes, self._late = every, size // every, int(self.allowed_lateness_seconds * 1000)

    def apply(self, run: Run) -> bool | None:
        if not self._concerns(run.reading) or run.reading is None:
            return None
        memory = self._memory(run)
        if run.deadline_ms:
            return self._close(run, memory)
        pane = run.mark[0] // self._every
        value = run.number(self.field)
        if pane < memory.closed or not _is_new(memory.seen, run.mark[1]):
            return None
        memory.at, memory.id = max((memory.at, memory.id), run.mark)
        _add(memory.panes, pane, value)
        self._arm(run, memory)
        run.remember(self.name, memory)
        return None

    def _memory(self, run: Run) -> WindowMemory:
        """A new one when panes had another length before: their numbers mean other times."""
        memory = run.recall(self.name, WindowMemory)
        if memory is None or memory.every not in (0, self._every):
            memory = WindowMemory()
        memory.every = self._every
        return memory

    def _closes_at(self, memory: WindowMemory) -> int:
        """When the window that closes next does, in event time."""
        return (max(memory.closed, memory.panes[0][0]) + 1) * self._every + self._late

    def _arm(self, run: Run, memory: WindowMemory) -> None:
        """The deadline is as far away on the clock as the close is in event time: a backlog closes nothing early."""
        left = max(0, self._closes_at(memory) - memory.at)
        due = run.world.now_ms + left
        is_lost = not memory.due or memory.due < run.world.now_ms - LOST_MS
        if is_lost or (left == 0 and memory.due > due):
            memory.due = run.arm(self.name, left)

    def _close(self, run: Run, memory: WindowMemory) -> bool | None:
        if run.deadline_ms != memory.due or not memory.panes:
            return None
        closes = self._closes_at(memory)
        end, reached = (closes - self._late) // self._every, max(memory.at, closes)
        window = [pane for pane in memory.panes if end - self._panes <= pane[0] < end]
        memory.closed = end
        memory.panes = [pane for pane in memory.panes if pane[0] > end - self._panes]
        memory.due = 0
        if memory.panes:
            # As long after this one as it ends after it, or at once when its time has come.
            memory.due = run.arm(self.name, self._closes_at(memory) - reached)
        run.remember(self.name, memory)
        run.at_ms = end * self._every
        run.data = {**run.data, **_aggregate(window), "windowStart": float((end - self._panes) * self._every)}
        run.data["windowEnd"] = float(run.at_ms)
        return True

    def values(self, run: Run) -> Mapping[str, Any]:
        memory = self._memory(run)
        return {"panes": [list(pane) for pane in memory.panes], "closedUntil": memory.closed * self._every}


def _is_new(seen: list[int], reading_id: int) -> bool:
    """Whether this id comes for the first time; notes it."""
    place = bisect_left(seen, reading_id)
    if (place < len(seen) and seen[place] == reading_id) or (place == 0 and len(seen) >= MOST_SEEN):
        return False
    seen.insert(place, reading_id)
    del seen[:-MOST_SEEN]
    return True


def _add(panes: list[Pane], number: int, value: float) -> None:
    place = bisect_left(panes, (number,))
    if place < len(panes) and panes[place][0] == number:
        _, count, total, least, most = panes[place]
        panes[place] = (number, count + 1, total + value, min(least, value), max(most, value))
    else:
        panes.insert(place, (number, 1, value, value, value))


def _aggregate(panes: list[Pane]) -> dict[str, float]:
    count, total = sum(pane[1] for pane in panes), sum(pane[2] for pane in panes)
    return {
        "count": float(count),
        "sum": total,
        "avg": total / count,
        "min": min(pane[3] for pane in panes),
        "max": max(pane[4] for pane in panes),
    }
