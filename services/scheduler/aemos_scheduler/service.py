"""What the scheduler does: keeps a copy of the schedules, and fires what is due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from aemos_core.errors import AemosError
from aemos_core.redis_link import wait
from aemos_core.times import now_ms

from aemos_scheduler.domain import Instant, Schedule, Timetable

log = logging.getLogger("aemos.scheduler")

REFRESH_SECONDS = 60.0
COALESCE_SECONDS = 0.2
RETRY_SECONDS = 1.0
MOST_AT_ONCE = 500
"""Instants claimed in one transaction: it must end well within its deadline."""

ReadSchedules = Callable[[], Awaitable[list[Schedule]]]
Fire = Callable[[Sequence[Instant]], Awaitable[list[Instant]]]


class Clock:
    """A component: sleeps until something is due or the timetable changed, and fires what is due.

    What cannot be fired now (no database) is tried again each second until it is too late for it: see Timetable.
    """

    def __init__(self, timetable: Timetable, fire: Fire) -> None:
        self._timetable = timetable
        self._fire = fire
        self._changed = asyncio.Event()

    def look_again(self) -> None:
        """The timetable changed."""
        self._changed.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Fires until told to stop, and finishes the transaction it is in."""
        while not stop.is_set():
            self._changed.clear()
            await _first_of(await self._fire_due(), stop, self._changed)

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
        log.debug("fired %s of %s due", len(fired), len(instants))
        return 0.0


class ScheduleCopy:
    """A component: the timetable follows what rules has.

    It asks after a hint (a burst of them makes one call in 0.2 s), every minute, and each second while rules does not
    answer; until then what it has stays in force.
    """

    def __init__(self, read: ReadSchedules, timetable: Timetable, clock: Clock) -> None:
        self._read = read
        self._timetable = timetable
        self._clock = clock
        self._hinted = asyncio.Event()
        self._reached = True

    def hint(self) -> None:
        """Something may have changed."""
        self._hinted.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Follows until told to stop."""
        while not stop.is_set():
            self._hinted.clear()
            if await self._refresh():
                await wait(stop, COALESCE_SECONDS)
                await _first_of(REFRESH_SECONDS, stop, self._hinted)
            else:
                await wait(stop, RETRY_SECONDS)

    async def _refresh(self) -> bool:
        try:
            schedules = await self._read()
        except AemosError as error:
            if self._reached:
                log.warning("schedules stay as they are: %s", error.detail)
            self._reached = False
            return False
        self._reached = True
        for schedule in self._timetable.replace(schedules, now_ms()):
            log.warning("chain %s is never due: %r", schedule.rule_chain_id, schedule.cron_expression)
        self._clock.look_again()
        return True


async def _first_of(seconds: float | None, *events: asyncio.Event) -> None:
    """Waits until one of the events is set, so long at the most."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
