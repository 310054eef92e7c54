"""What the clock knows: schedules, the instants they make due, and in which order. Pure: time comes as an argument."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from zlib import crc32

from aemos_core.cron import next_due

LATE_MS = 60_000
"""How long after its time an instant may still be fired."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a chain runs by itself: six fields, seconds first, and an IANA time zone."""

    rule_chain_id: int
    organization_id: int
    cron_expression: str
    timezone: str


@dataclass(frozen=True, slots=True)
class Instant:
    """A chain due at one time, in milliseconds since 1970 UTC."""

    schedule: Schedule
    planned_at_ms: int


@dataclass(frozen=True, slots=True)
class Planned:
    """A schedule and when it is due next; None: never."""

    schedule: Schedule
    due_ms: int | None


def partition_of(rule_chain_id: int, partitions: int) -> int:
    """The partition of the rule queue on which a chain's scheduled runs go."""
    return crc32(str(rule_chain_id).encode()) % partitions


class Timetable:
    """Which chain is due when.

    Misfires: an instant that could not be fired (no scheduler ran, or its database was down) is skipped when it is more
    than `LATE_MS` ago. Of those that a start finds in the last `LATE_MS`, only each chain's latest is fired. A policy
    that users choose is still to come.
    """

    def __init__(self) -> None:
        self._planned: dict[int, Planned] = {}
        # May hold entries that are no longer true: `_planned` decides.
        self._heap: list[tuple[int, int]] = []
        self._has_copy = False

    def replace(self, schedules: Iterable[Schedule], now_ms: int) -> list[Schedule]:
        """Takes the schedules that there are now; returns those new among them that can never be due."""
        old, self._planned = self._planned, {}
        unusable = []
        for schedule in schedules:
            known = old.get(schedule.rule_chain_id)
            if known is None or known.schedule != schedule:
                known = Planned(schedule, self._first_due(schedule, now_ms))
                if known.due_ms is None:
                    unusable.append(schedule)
            self._planned[schedule.rule_chain_id] = known
        self._has_copy = True
        self._heap = [(p.due_ms, chain) for chain, p in self._planned.items() if p.due_ms is not None]
        heapq.heapify(self._heap)
        return unusable

    def of_organization(self, organization_id: int, after: int, limit: int) -> list[Planned]:
        """At most `limit` of its schedules with chain ids above `after`, by chain id."""
        mine = (p for p in self._planned.values() if p.schedule.organization_id == organization_id)
        behind = (p for p in mine if p.schedule.rule_chain_id > after)
        return heapq.nsmallest(limit, behind, key=lambda planned: planned.schedule.rule_chain_id)

    def next_at(self) -> int | None:
        """When something is due next, at the earliest."""
        return self._heap[0][0] if self._heap else None

    def take(self, now_ms: int, most: int) -> list[Instant]:
        """At most `most` instants that are due, one for each chain; say `fired` or `put_back` afterwards."""
        taken: list[Instant] = []
        while self._heap and self._heap[0][0] <= now_ms and len(taken) < most:
            due_ms, chain = heapq.heappop(self._heap)
            planned = self._planned.get(chain)
            if planned is None or planned.due_ms != due_ms:
                continue
            if due_ms <= now_ms - LATE_MS:
                self._plan(planned.schedule, _latest_or_next(planned.schedule, now_ms))
            else:
                taken.append(Instant(planned.schedule, due_ms))
        return taken

    def fired(self, instants: Sequence[Instant]) -> None:
        """Goes on to the next instant of each."""
        for instant in instants:
            if self._is_current(instant):
                self._plan(instant.schedule, _next(instant.schedule, instant.planned_at_ms))

    def put_back(self, instants: Sequence[Instant]) -> None:
        """They could not be fired: they are due still."""
        for instant in instants:
            if self._is_current(instant):
                self._plan(instant.schedule, instant.planned_at_ms)

    def _first_due(self, schedule: Schedule, now_ms: int) -> int | None:
        # A schedule that comes while we run was saved just now: what would have been due before was never missed.
        return _next(schedule, now_ms) if self._has_copy else _latest_or_next(schedule, now_ms)

    def _plan(self, schedule: Schedule, due_ms: int | None) -> None:
        self._planned[schedule.rule_chain_id] = Planned(schedule, due_ms)
        if due_ms is not None:
            heapq.heappush(self._heap, (due_ms, schedule.rule_chain_id))

    def _is_current(self, instant: Instant) -> bool:
        planned = self._planned.get(instant.schedule.rule_chain_id)
        return planned == Planned(instant.schedule, instant.planned_at_ms)


def _next(schedule: Schedule, after_ms: int) -> int | None:
    try:
        return next_due(schedule.cron_expression, schedule.timezone, after_ms)
    except ValueError:
        return None


def _latest_or_next(schedule: Schedule, now_ms: int) -> int | None:
    """The latest instant of the last `LATE_MS`, or the first one to come."""
    due = _next(schedule, now_ms - LATE_MS)
    while due is not None and (following := _next(schedule, due)) is not None and following <= now_ms:
        due = following
    return due
