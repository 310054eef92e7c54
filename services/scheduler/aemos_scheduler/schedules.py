"""What users ask of the scheduler: their schedules, what these mean, runs at once, and pauses."""

from __future__ import annotations

from collections.abc import Sequence

from aemos_core.errors import invalid, not_found, unavailable
from aemos_core.identity import caller
from aemos_core.paging import Page
from aemos_core.times import now_ms
from aemos_core.timing import Timing, refuse

from aemos_scheduler.domain import Instant, Planned, Timetable, due_instants
from aemos_scheduler.rules_client import Changes, RulesClient
from aemos_scheduler.service import ScheduleCopy
from aemos_scheduler.store import AnyRow, FiringStore

_MOST_INSTANTS = 100


class Schedules:
    """Everything is of the caller's organization; another one's chain is NOT_FOUND."""

    def __init__(self, timetable: Timetable, firings: FiringStore, rules: RulesClient, copy: ScheduleCopy) -> None:
        self._timetable = timetable
        self._firings = firings
        self._rules = rules
        self._copy = copy

    def page(self, page: Page) -> list[Planned]:
        """At most `limit` + 1 schedules."""
        return self._timetable.of_organization(caller().organization_id, page.after, page.limit + 1)

    def get(self, chain: int) -> Planned:
        """One schedule."""
        planned = self._timetable.get(chain)
        if planned is not None and planned.schedule.organization_id == caller().organization_id:
            return planned
        if not self._timetable.complete:
            raise unavailable("the schedules are still being read")
        raise not_found("schedule")

    async def firings(self, chain: int, page: Page) -> tuple[Sequence[AnyRow], str]:
        """A chain's history, newest first, and the token of the next page."""
        return await self._firings.list_firings(caller().organization_id, chain, page)

    async def run_now(self, chain: int) -> AnyRow:
        """Fires a chain because a user said so; the firing."""
        planned = self.get(chain)
        # What is due goes first: nothing is fired of a chain before what was due earlier is.
        earlier = due_instants(planned, now_ms())
        for at in range(now_ms(), now_ms() + 10):
            fired = await self._firings.fire([*earlier, Instant(planned.schedule, at, manual=True)])
            if any(instant.manual for instant in fired):
                rows, _ = await self.firings(chain, Page(1, at + 1))
                return rows[0]
        raise unavailable("it is being run just now")

    async def pause(self, chain: int, paused: bool) -> Planned:
        """Pauses or resumes a schedule; in force here when this returns, elsewhere after the hint."""
        schedule = await self._rules.set_paused(caller().organization_id, caller().user_id, chain, paused)
        await self._copy.take(Changes([schedule], [], 0))
        return self.get(chain)


def preview(timing: Timing, count: int, after_ms: int) -> list[int]:
    """The next instants of a schedule, at most `count` (10 when 0); INVALID names what is wrong with it."""
    if not 0 <= count <= _MOST_INSTANTS:
        raise invalid("count", f"must be 1 to {_MOST_INSTANTS}")
    refuse(timing.check())
    found: list[int] = []
    while len(found) < (count or 10) and (due := timing.next_after(after_ms)) is not None:
        found.append(due)
        after_ms = due
    return found
