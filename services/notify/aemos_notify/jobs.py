"""The job that copies notification logs to the ledger, from both sides: who asks for it and who does it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from aemos.v1.job_pb2 import RecordNotifications
from aemos_core.database import Database
from aemos_core.errors import AemosError
from aemos_core.jobs import RECORD_NOTIFICATIONS, Job, JobQueue
from aemos_core.names import NOTIFICATION_LOGS
from aemos_core.notification_log import END, entries
from aemos_core.redis_link import RedisClient
from aemos_core.waiting import wait
from redis.exceptions import RedisError

from aemos_notify import store
from aemos_notify.dispatch import Dispatcher

log = logging.getLogger("aemos.notify")

_PAUSE_SECONDS = 1.0
_ENTRIES_AT_ONCE = 500
_ORGANIZATIONS_A_JOB = 1_000


class LedgerFeed:
    """A component: asks for the logs of organizations that had notifications, at most once a second.

    What it has not asked for when it ends is found by the next one, which begins with all logs.
    """

    def __init__(self, redis: RedisClient, queue: JobQueue) -> None:
        self._redis = redis
        self._queue = queue
        self._organizations: set[int] = set()
        self._all = True
        self._something = asyncio.Event()
        self._something.set()

    def noticed(self, organization_id: int) -> None:
        """The organization had a notification."""
        self._organizations.add(organization_id)
        self._something.set()

    def missed_some(self) -> None:
        """Notifications may have come that nobody noticed."""
        self._all = True
        self._something.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Asks until told to stop."""
        while not await wait(stop, _PAUSE_SECONDS):
            await wait(stop, None, self._something)
            self._something.clear()
            organizations, self._organizations = self._organizations, set()
            every, self._all = self._all, False
            try:
                if every:
                    organizations |= {int(member) for member in await self._redis.smembers(NOTIFICATION_LOGS)}
                await self._ask(sorted(organizations))
            except (RedisError, OSError) as error:
                log.warning("the ledger waits: %s", type(error).__name__)
                self._organizations |= organizations
                self._all |= every
                self._something.set()

    async def _ask(self, organizations: Sequence[int]) -> None:
        for start in range(0, len(organizations), _ORGANIZATIONS_A_JOB):
            job = RecordNotifications(organization_ids=organizations[start : start + _ORGANIZATIONS_A_JOB])
            await self._queue.enqueue(RECORD_NOTIFICATIONS, job.SerializeToString())


class RecordJob:
    """Does the job: copies logs to the ledger, and sets off what subscriptions make of them; twice is once."""

    def __init__(self, database: Database, redis: RedisClient, dispatcher: Dispatcher) -> None:
        self._database = database
        self._redis = redis
        self._dispatcher = dispatcher

    async def __call__(self, payload: bytes, job: Job) -> None:
        await self.copy(RecordNotifications.FromString(payload).organization_ids)

    async def copy(self, organization_ids: Iterable[int]) -> None:
        """Copies what is new of these organizations. Raises an AemosError of one of them, when all had their turn;
        begun again, goes on."""
        failed: AemosError | None = None
        for organization_id in organization_ids:
            try:
                while await self._copy_some(organization_id):
                    pass
            except AemosError as error:
                failed = error
        if failed is not None:
            raise failed

    async def _copy_some(self, organization_id: int) -> bool:
        """Whether there may be more."""
        async with self._database.read() as connection:
            after = await store.reached(connection, organization_id)
        found = await entries(self._redis, organization_id, after, END, _ENTRIES_AT_ONCE)
        if found:
            await self._dispatcher.record(organization_id, found)
        return len(found) == _ENTRIES_AT_ONCE
