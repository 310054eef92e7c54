"""What the scheduler does by itself: keeps a copy of the schedules, fires what is due, and forgets old history."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from aemos.v1 import rule_chain_pb2 as pb
from aemos.v1 import rule_chain_pb2_grpc
from aemos_core import telemetry
from aemos_core.errors import AemosError, unavailable
from aemos_core.identity import Caller
from aemos_core.times import now_ms
from aemos_core.waiting import wait

from aemos_scheduler.codec import end_without_run, schedule_from_pb
from aemos_scheduler.domain import LATE_MS, Instant, Planned, Timetable, due_instants
from aemos_scheduler.store import FiringStore

log = logging.getLogger("aemos.scheduler")

REFRESH_SECONDS = 5.0
"""How soon a change is seen whose hint was lost."""
COALESCE_SECONDS = 0.2
RETRY_SECONDS = 1.0
LOOK_SECONDS = 1.0
"""How long the clock sleeps at the most, for the wall clock may be set, or the machine be suspended, meanwhile."""
MOST_AT_ONCE = 1_000
"""Instants claimed in one transaction, as many as one job holds."""
FIRED_BEFORE_PRUNING = 100
_PAGE = 1_000


class Clock:
    """A component: sleeps until something is due or the timetable changed, and fires what is due.

    What cannot be fired now (no database) is tried again each second; for what is a minute late then see Timetable.
    """

    def __init__(self, timetable: Timetable, firings: FiringStore, tidier: Tidier) -> None:
        self._timetable = timetable
        self._firings = firings
        self._tidier = tidier
        self._changed = asyncio.Event()

    def look_again(self) -> None:
        """The timetable changed."""
        self._changed.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Fires until told to stop, and finishes the transaction it is in."""
        while not stop.is_set():
            self._changed.clear()
            await wait(stop, await self._fire_due(), self._changed)

    async def run_now(self, planned: Planned) -> int:
        """Fires a chain because a user says so, and returns when; UNAVAILABLE while others do so at each moment."""
        # What is due goes first: nothing is fired of a chain before what was due earlier is.
        earlier = due_instants(planned, now_ms())
        for at in range(now_ms(), now_ms() + 10):
            fired = await self._firings.fire([*earlier, Instant(planned.schedule, at, manual=True)])
            if any(instant.manual for instant in fired):
                return at
        raise unavailable("it is being run just now")

    async def _fire_due(self) -> float | None:
        """Returns the seconds until there may be something to do; None: only after a change."""
        now = now_ms()
        instants = self._timetable.take(now, MOST_AT_ONCE)
        if not instants:
            due = self._timetable.next_at()
            return None if due is None else min(LOOK_SECONDS, (due - now) / 1000)
        try:
            fired = await self._firings.fire(instants)
        except AemosError as error:
            log.warning("%s instants wait: %s", len(instants), error.detail)
            self._timetable.put_back(instants)
            return RETRY_SECONDS
        self._timetable.fired(instants)
        self._tidier.fired(fired)
        _report_late(fired, now_ms())
        log.debug("fired %s of %s due", len(fired), len(instants))
        return 0.0


def _report_late(fired: Sequence[Instant], now: int) -> None:
    late = [now - instant.planned_at_ms for instant in fired if now - instant.planned_at_ms > LATE_MS]
    if late:
        telemetry.count(telemetry.SCHEDULES_LATE, len(late))
        log.warning("%s of %s runs are more than 5 s late, by up to %.0f s", len(late), len(fired), max(late) / 1000)


class ScheduleCopy:
    """A component: the timetable follows what rules has.

    It lists everything once, a page at a time so that what is due meanwhile is fired, and then asks what changed: after
    a hint (a burst of them makes one call in 0.2 s), every 5 s, and each second while rules does not answer; until then
    what it has stays in force.
    """

    def __init__(
        self,
        rules: rule_chain_pb2_grpc.RuleChainServiceAsyncStub,
        firings: FiringStore,
        timetable: Timetable,
        clock: Clock,
    ) -> None:
        self._rules = rules
        self._firings = firings
        self._timetable = timetable
        self._clock = clock
        self._hinted = asyncio.Event()
        self._reached = True
        self._since_ms = 0

    def hint(self) -> None:
        """Something may have changed."""
        self._hinted.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Follows until told to stop."""
        while not stop.is_set():
            self._hinted.clear()
            if await self._refresh():
                await wait(stop, COALESCE_SECONDS)
                await wait(stop, REFRESH_SECONDS, self._hinted)
            else:
                await wait(stop, RETRY_SECONDS)

    async def take(self, schedules: Iterable[pb.Schedule]) -> None:
        """Puts what is new or changed in force. Raises UNAVAILABLE when it cannot be asked what was fired of it."""
        differing = self._timetable.differing(map(schedule_from_pb, schedules))
        if not differing:
            return
        fired = await self._firings.last_fired([schedule.rule_chain_id for schedule in differing])
        for schedule in self._timetable.put(differing, fired, now_ms()):
            log.info("chain %s is never due (any more)", schedule.rule_chain_id)
        self._clock.look_again()

    async def pause(self, who: Caller, chain: int, paused: bool) -> None:
        """Or lets it go on. In force here when this returns, elsewhere after the hint."""
        request = pb.SetSchedulePausedRequest(
            organization_id=who.organization_id, user_id=who.user_id, rule_chain_id=chain, paused=paused
        )
        await self.take([(await self._rules.SetSchedulePaused(request)).schedule])

    async def _refresh(self) -> bool:
        try:
            await (self._follow() if self._since_ms else self._list_everything())
        except AemosError as error:
            if self._reached:
                log.warning("schedules stay as they are: %s", error.detail)
            self._reached = False
            return False
        self._reached = True
        return True

    async def _follow(self) -> None:
        changes = await self._rules.ListScheduleChanges(pb.ListScheduleChangesRequest(since_ms=self._since_ms))
        if changes.incomplete:
            await self._list_everything()
            return
        self._timetable.remove(changes.removed_rule_chain_ids)
        await self.take(changes.schedules)
        self._since_ms = changes.now_ms

    async def _list_everything(self) -> None:
        since_ms, chains = 0, set[int]()
        request = pb.ListSchedulesRequest(page_size=_PAGE)
        while True:
            page = await self._rules.ListSchedules(request, wait_for_ready=True)
            since_ms = since_ms or page.now_ms
            chains |= {schedule.rule_chain_id for schedule in page.schedules}
            await self.take(page.schedules)
            request.page_token = page.next_page_token
            if not request.page_token:
                break
        self._timetable.keep_only(chains)
        self._since_ms = since_ms


class Tidier:
    """History stays bounded, in small steps, and runs that were lost hold up nobody."""

    def __init__(self, firings: FiringStore) -> None:
        self._firings = firings
        self._fired: Counter[int] = Counter()
        self._crowded: set[int] = set()

    def fired(self, instants: Sequence[Instant]) -> None:
        """History grew."""
        for instant in instants:
            chain = instant.rule_chain_id
            self._fired[chain] += 1
            if self._fired[chain] >= FIRED_BEFORE_PRUNING:
                del self._fired[chain]
                self._crowded.add(chain)

    async def tidy(self) -> None:
        """One step."""
        if lost := await self._firings.lost():
            log.warning("nothing was heard of %s runs for an hour", len(lost))
            await self._firings.finish([end_without_run(run, "lost") for run in lost])
        while self._crowded:
            await self._firings.prune(next(iter(self._crowded)))
            self._crowded.pop()
        await self._firings.expire()
