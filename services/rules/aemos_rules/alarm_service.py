"""Use cases of alarms: what users do with them."""

from __future__ import annotations

from collections.abc import Sequence

from aemos_core import telemetry
from aemos_core.announcements import outbox_row
from aemos_core.database import Database
from aemos_core.errors import invalid
from aemos_core.identity import caller
from aemos_core.outbox import OutboxRows
from aemos_core.paging import Page
from aemos_core.times import now_ms

from aemos_rules import alarm_store
from aemos_rules.alarm_store import AlarmQuery, AnyRow
from aemos_rules.alarms import SEVERITIES, What
from aemos_rules.announcements import alarm_changed


class Alarms:
    """Alarms of the caller's organization."""

    def __init__(self, database: Database, outbox: OutboxRows) -> None:
        self._database = database
        self._outbox = outbox

    async def get(self, alarm_id: int) -> AnyRow:
        """An alarm."""
        async with self._database.read() as connection:
            return await alarm_store.get(connection, caller().organization_id, alarm_id)

    async def page(self, wanted: AlarmQuery, page: Page) -> tuple[Sequence[AnyRow], str]:
        """A page of alarms, newest first, and the token of the next."""
        if wanted.severity and wanted.severity not in SEVERITIES:
            raise invalid("severity", f"must be one of {', '.join(SEVERITIES)}")
        async with self._database.read() as connection:
            rows = await alarm_store.page(connection, caller().organization_id, wanted, page.after, page.limit)
        return page.cut(rows)

    async def events(self, alarm_id: int, page: Page) -> tuple[Sequence[AnyRow], str]:
        """A page of what happened to an alarm, oldest first, and the token of the next."""
        async with self._database.read() as connection:
            await alarm_store.get(connection, caller().organization_id, alarm_id)
            return page.cut(await alarm_store.events(connection, alarm_id, page.after, page.limit))

    async def acknowledge(self, alarm_id: int) -> AnyRow:
        """Somebody has seen to it."""
        return await self._by_hand(alarm_id, What.ACKNOWLEDGED)

    async def clear(self, alarm_id: int) -> AnyRow:
        """Ends it as of now, whatever a reading from before says later."""
        return await self._by_hand(alarm_id, What.CLEARED)

    async def _by_hand(self, alarm_id: int, what: What) -> AnyRow:
        who = caller()
        async with self._database.write() as connection:
            row = await alarm_store.get(connection, who.organization_id, alarm_id, lock=True)
            values = alarm_store.done_by_hand(row, what, now_ms())
            if not values:
                return row
            row = await alarm_store.change_by_hand(connection, row, what, values, who.user_id)
            rows = await self._outbox.add(connection, [outbox_row([alarm_changed(row, what, telemetry.current())])])
        self._outbox.committed(rows)
        return row
