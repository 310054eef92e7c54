"""What the scheduler does by itself: keeps a copy of the schedules, fires what is due, and forgets old history."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

from aemos_core import telemetry
from aemos_core.errors import AemosError
from aemos_core.times import now_ms
from aemos_core.waiting import wait

from aemos_scheduler.codec import end_without_run
from aemos_scheduler.domain import LATE_MS, Instant, Timetable
from aemos_scheduler.rules_client import Changes
from aemos_scheduler.store import FiringStore

log = logging.getLogger("aemos.scheduler")

REFRESH_SECONDS = 5.0
"""How soon a change is seen whose hint was lost."""
COALESCE_SECONDS = 0.2
RETRY_SECONDS = 1.0
MOST_AT_ONCE = 1_000
"""Instants claimed in one transaction, as many as one job holds."""
TIDY_SECONDS = 10.0
FIRED_BEFORE_PRUNING = 100

Fire = Callable[[Sequence[Instant]], Awaitable[list[Instant]]]


class Clock:
    """A component: sleeps until something is due or the timetable changed, and fires what is due.

    What cannot be fired now (no database) is tried again each second; for what is a minute late then see Timetable.
    """

    def __init__(self, timetable: Timetable, fire: Fire, tidier: Tidier) -> None:
        self._timetable = timetable
        self._fire = fire
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

    async def _fire_due(self) -> float | None:
        """Returns the seconds until there may be something to do; None: only after a change."""
        now = now_ms()
        instants = self._timetable.take(now, MOST_AT_ONCE)
        if not instants:
            due = self._timetable.next_at()
            return None if due is None else (due - now) / 1000
        try:
            fired = await self._fire(instants)
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


class Rules(Protocol):
    """What the copy needs of rules; see RulesClient."""

    def pages(self) -> AsyncIterator[Changes]:
        """See RulesClient.pages."""

    async def changes(self, since_ms: int) -> Changes | None:
        """See RulesClient.changes."""


LastFired = Callable[[Iterable[int]], Awaitable[Mapping[int, int]]]


class ScheduleCopy:
    """A component: the timetable follows what rules has.

    It lists everything once, a page at a time so that what is due meanwhile is fired, and then asks what changed: after
    a hint (a burst of them makes one call in 0.2 s), every 5 s, and each second while rules does not answer; until then
    what it has stays in force.
    """

    def __init__(self, rules: Rules, last_fired: LastFired, timetable: Timetable, clock: Clock) -> None:
        self._rules = rules
        self._last_fired = last_fired
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

    async def take(self, changes: Changes) -> None:
        """Puts what changed in force. Raises UNAVAILABLE when it cannot be asked what was fired of it."""
        self._timetable.remove(changes.removed)
        differing = self._timetable.differing(changes.schedules)
        if not differing:
            return
        fired = await self._last_fired([schedule.rule_chain_id for schedule in differing])
        for schedule in self._timetable.put(differing, fired, now_ms()):
            log.info("chain %s is never due (any more)", schedule.rule_chain_id)
        self._clock.look_again()

    async def _refresh(self) -> bool:
        try:
            changes = await self._rules.changes(self._since_ms) if self._since_ms else None
            if changes is None:
                await self._list_everything()
            else:
                await self.take(changes)
                self._since_ms = changes.now_ms
        except AemosError as error:
            if self._reached:
                log.warning("schedules stay as they are: %s", error.detail)
            self._reached = False
            return False
        self._reached = True
        return True

    async def _list_everything(self) -> None:
        since_ms, chains = 0, set[int]()
        async for page in self._rules.pages():
            since_ms = since_ms or page.now_ms
            chains |= {schedule.rule_chain_id for schedule in page.schedules}
            await self.take(page)
        self._timetable.keep_only(chains)
        self._since_ms = since_ms


class Tidier:
    """A component: history stays bounded, in small steps, and runs that were lost hold up nobody."""

    def __init__(self, firings: FiringStore) -> None:
        self._firings = firings
        self._fired: Counter[int] = Counter()
        self._crowded: set[int] = set()

    def fired(self, instants: Sequence[Instant]) -> None:
        """History grew."""
        for instant in instants:
            chain = instant.schedule.rule_chain_id
            self._fired[chain] += 1
            if self._fired[chain] >= FIRED_BEFORE_PRUNING:
                del self._fired[chain]
                self._crowded.add(chain)

    async def run(self, stop: asyncio.Event) -> None:
        """Tidies until told to stop."""
        while not await wait(stop, TIDY_SECONDS):
            try:
                await self._tidy()
            except AemosError as error:
                log.warning("history stays as it is for now: %s", error.detail)

    async def _tidy(self) -> None:
        if lost := await self._firings.lost():
            log.warning("nothing was heard of %s runs for an hour", len(lost))
            await self._firings.finish([end_without_run(*key, "lost") for key in lost])
        while self._crowded:
            await self._firings.prune(next(iter(self._crowded)))
            self._crowded.pop()
        await self._firings.expire()
