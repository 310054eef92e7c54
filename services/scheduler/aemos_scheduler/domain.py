"""What the clock knows: schedules, the instants they make due, and in which order. Pure: time comes as an argument."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

from aemos_core.errors import invalid, refuse
from aemos_core.timing import Timing

MISFIRE_MS = 60_000
"""What is later than this was missed, and the schedule's misfire policy decides; anything else is only late."""
LATE_MS = 5_000
"""What is later than this is reported."""
LOST_MS = 60 * 60 * 1000
"""As long as a job may be old: a run that has not ended by then has not run, or cannot say so."""
MOST_MADE_UP = 100
"""How many missed instants of a schedule "run-all" runs."""
MOST_QUEUED = 100
"""How many runs of a chain wait for the one before; what comes then is skipped."""
MOST_PREVIEWED = 100
HORIZON_MS = 30 * 24 * 60 * 60 * 1000
"""What was missed longer ago is forgotten. History is kept longer, so nothing is ever fired a second time."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a chain runs by itself. The policies are the contract's words; nothing was due before `since_ms`."""

    rule_chain_id: int
    organization_id: int
    timing: Timing
    misfire: str = "run-once"
    overlap: str = "allow"
    paused: bool = False
    since_ms: int = 0


@dataclass(frozen=True, slots=True)
class Instant:
    """A chain due at one time, in milliseconds since 1970 UTC; manual: because a user said so."""

    schedule: Schedule
    planned_at_ms: int
    manual: bool = False

    @property
    def rule_chain_id(self) -> int:
        """The chain; with the planned time it names an instant."""
        return self.schedule.rule_chain_id


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

    Each chain's instants are taken in their order, so what is fired of a chain has no holes, and the latest fired
    instant says where any process goes on. Two processes that decide at different times what was missed run what the
    first of them alone would have run.
    """

    def __init__(self) -> None:
        self.complete = False
        self._planned: dict[int, Planned] = {}
        # May hold entries that are no longer true: `_planned` decides.
        self._heap: list[tuple[int, int]] = []

    def differing(self, schedules: Iterable[Schedule]) -> list[Schedule]:
        """Those that are not here as they are."""
        known = self._planned
        return [s for s in schedules if (old := known.get(s.rule_chain_id)) is None or old.schedule != s]

    def put(self, schedules: Iterable[Schedule], fired: Mapping[int, int], now_ms: int) -> list[Schedule]:
        """Takes new and changed schedules; `fired`: each chain's latest fired instant. Returns those never due."""
        never = []
        for schedule in schedules:
            base = max(schedule.since_ms, fired.get(schedule.rule_chain_id, 0), now_ms - HORIZON_MS)
            due = None if schedule.paused else schedule.timing.next_after(base)
            self._plan(schedule, due)
            if due is None and not schedule.paused:
                never.append(schedule)
        return never

    def remove(self, chains: Iterable[int]) -> None:
        """They have no schedule any more."""
        for chain in chains:
            self._planned.pop(chain, None)

    def keep_only(self, chains: set[int]) -> None:
        """These are all that there are."""
        self.remove(self._planned.keys() - chains)
        self.complete = True

    def get(self, chain: int) -> Planned | None:
        """A chain's schedule."""
        return self._planned.get(chain)

    def of_organization(self, organization_id: int, after: int, limit: int) -> list[Planned]:
        """At most `limit` of its schedules with chain ids above `after`, by chain id."""
        mine = (p for p in self._planned.values() if p.schedule.organization_id == organization_id)
        behind = (p for p in mine if p.schedule.rule_chain_id > after)
        return heapq.nsmallest(limit, behind, key=lambda planned: planned.schedule.rule_chain_id)

    def next_at(self) -> int | None:
        """When something is due next, at the earliest."""
        return self._heap[0][0] if self._heap else None

    def take(self, now_ms: int, most: int) -> list[Instant]:
        """About `most` instants that are due, each chain's in order; say `fired` or `put_back` afterwards."""
        taken: list[Instant] = []
        while self._heap and self._heap[0][0] <= now_ms and len(taken) < most:
            due_ms, chain = heapq.heappop(self._heap)
            planned = self._planned.get(chain)
            if planned is None or planned.due_ms != due_ms:
                continue
            instants = due_instants(planned, now_ms)
            if not instants:
                self._plan(planned.schedule, planned.schedule.timing.next_after(now_ms))
            taken += instants
        return taken

    def fired(self, instants: Sequence[Instant]) -> None:
        """Goes on to what is next for each chain."""
        for schedule, last in self._current(instants):
            self._plan(schedule, schedule.timing.next_after(last))

    def put_back(self, instants: Sequence[Instant]) -> None:
        """They could not be fired: they are due still."""
        for schedule, _ in self._current(instants):
            self._plan(schedule, self._planned[schedule.rule_chain_id].due_ms)

    def _plan(self, schedule: Schedule, due_ms: int | None) -> None:
        self._planned[schedule.rule_chain_id] = Planned(schedule, due_ms)
        if due_ms is not None:
            heapq.heappush(self._heap, (due_ms, schedule.rule_chain_id))

    def _current(self, instants: Sequence[Instant]) -> list[tuple[Schedule, int]]:
        """Their schedules as far as they still are what they were, each with its last instant."""
        last = {i.rule_chain_id: i for i in instants if not i.manual}
        found = ((self._planned.get(chain), instant) for chain, instant in last.items())
        return [(i.schedule, i.planned_at_ms) for p, i in found if p is not None and p.schedule is i.schedule]


def due_instants(planned: Planned, now_ms: int) -> list[Instant]:
    """What is to run now of what is due: all that is only late, or, once something was missed, what the policy says."""
    schedule, due = planned.schedule, planned.due_ms
    if due is None or due > now_ms:
        return []
    if due > now_ms - MISFIRE_MS:
        planned_at = _from(schedule.timing, due, now_ms)
    else:
        most = MOST_MADE_UP if schedule.misfire == "run-all" else 1
        planned_at = schedule.timing.last(most, due - 1, now_ms)
        if schedule.misfire == "skip":
            planned_at = [at for at in planned_at if at > now_ms - MISFIRE_MS]
    return [Instant(schedule, at) for at in planned_at]


def _from(timing: Timing, due: int | None, until_ms: int) -> list[int]:
    found = []
    while due is not None and due <= until_ms:
        found.append(due)
        due = timing.next_after(due)
    return found


def preview(timing: Timing, count: int, after_ms: int) -> list[int]:
    """The next instants of a schedule, at most `count` (10 when 0); INVALID names what is wrong with it."""
    if not 0 <= count <= MOST_PREVIEWED:
        raise invalid("count", f"must be 1 to {MOST_PREVIEWED}")
    refuse(timing.check())
    found: list[int] = []
    while len(found) < (count or 10) and (due := timing.next_after(after_ms)) is not None:
        found.append(due)
        after_ms = due
    return found


def by_overlap(
    instants: Iterable[Instant], unfinished: Mapping[int, int]
) -> tuple[list[Instant], list[Instant], list[Instant]]:
    """Which of them run, wait and are skipped; `unfinished`: how many of a chain's runs are not over, or wait."""
    busy = Counter(unfinished)
    runs: list[Instant] = []
    queued: list[Instant] = []
    skipped: list[Instant] = []
    for instant in instants:
        chain, policy = instant.rule_chain_id, instant.schedule.overlap
        if policy == "allow" or not busy[chain]:
            runs.append(instant)
        elif policy == "queue" and busy[chain] <= MOST_QUEUED:
            queued.append(instant)
        else:
            skipped.append(instant)
            continue
        busy[chain] += 1
    return runs, queued, skipped
