"""What was announced: read back from the notification log and the ledger, and forgotten after a month."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from aemos_core.database import Database
from aemos_core.notification_log import BEGINNING, Logged, LogId, entries
from aemos_core.redis_link import RedisClient

from aemos_notify import store
from aemos_notify import subscription_store as subscriptions

KEPT_MS = 30 * 24 * 60 * 60 * 1000
"""The ledger keeps notifications so long."""
_ENTRIES_AT_ONCE = 500


async def forget_old(database: Database, before_ms: int) -> bool:
    """Removes some of what is older, with its deliveries, also of organizations that fell silent: whether there may be
    more."""
    async with database.read() as connection:
        organizations = await store.organizations(connection)
    is_more = False
    for organization_id in organizations:
        async with database.write() as connection:
            is_more |= await store.forget(connection, organization_id, before_ms)
            is_more |= await subscriptions.forget(connection, organization_id, before_ms)
    return is_more


class History:
    """What was announced, newest first: from the log, and what it no longer has, from the ledger."""

    def __init__(self, database: Database, redis: RedisClient) -> None:
        self._database = database
        self._redis = redis

    async def backwards(self, organization_id: int, after: LogId, upto: LogId) -> AsyncIterator[Sequence[Logged]]:
        """Pages of what lies behind `after`, up to `upto`, newest first. UNAVAILABLE when Redis does not answer."""
        is_log = True
        while upto > after:
            if is_log:
                page = await entries(self._redis, organization_id, after, upto, _ENTRIES_AT_ONCE, newest_first=True)
            else:
                behind = (organization_id, after, _ENTRIES_AT_ONCE)
                async with self._database.read() as connection:
                    page = await store.entries(connection, *behind, upto=upto, newest_first=True)
            yield page
            if page:
                upto = page[-1].id.before()
            if len(page) < _ENTRIES_AT_ONCE:
                if not is_log or await entries(self._redis, organization_id, BEGINNING, after, 1):
                    return  # it goes back as far as is asked
                is_log = False
