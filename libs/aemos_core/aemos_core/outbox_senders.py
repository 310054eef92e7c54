"""Where outbox rows go: to a job queue, settled by the worker's receipt, or to the notification log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from uuid import uuid4

from aemos.v1 import job_pb2
from redis.exceptions import RedisError

from aemos_core.announce import Announcer
from aemos_core.jobs import Job, JobQueue, JobSpec
from aemos_core.names import outbox_mark, outbox_receipts
from aemos_core.outbox import Row
from aemos_core.outbox_lane import Lost
from aemos_core.redis_link import RedisClient, end
from aemos_core.telemetry import SPAN_PUBLISH, carry, child

log = logging.getLogger("aemos.outbox")

ANNOUNCE = "announce"
_CHECK_SECONDS = 2.0
"""A job that is not done by then may be lost, or a dead letter, which nobody sends a receipt for: then it holds up its
lane for so long."""
_MARK_SECONDS = 24 * 60 * 60
_RECEIPTS_SECONDS = 600
_BLOCK_SECONDS = 2.0
_KEEP_ANNOUNCED_MS = 10 * 60 * 1000


class _Memory:
    """Notices that a Redis server is not the one it was, or has forgotten: a mark that was left there is gone."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._mark = outbox_mark(uuid4().hex)
        self._known = ""

    async def losses(self) -> tuple[bool, bool]:
        """Since the last time: whether it is another one, whether it has forgotten."""
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.info("server")
                pipe.set(self._mark, "1", ex=_MARK_SECONDS, get=True)
                server, mark = await pipe.execute()
        except (RedisError, OSError):
            return False, False
        known, self._known = self._known, str(server["run_id"])
        return bool(known) and known != self._known, bool(known) and mark is None


class Receipts:
    """A component: learns from workers which jobs are done."""

    def __init__(self, redis: RedisClient, relay_id: str) -> None:
        self.key = outbox_receipts(relay_id)
        self._redis = redis
        self._jobs: dict[str, asyncio.Future[bool]] = {}

    def expect(self, job_id: str) -> asyncio.Future[bool]:
        """True when the job is done, False when nobody can tell."""
        future = self._jobs[job_id] = asyncio.get_running_loop().create_future()
        return future

    def drop(self, job_id: str) -> None:
        """Nobody waits for this job any more."""
        self._jobs.pop(job_id, None)

    def lose_all(self) -> None:
        """Redis forgot the jobs."""
        for job_id in self._jobs:
            self._tell(job_id, False)

    def _tell(self, job_id: str, is_done: bool) -> None:
        future = self._jobs.get(job_id)  # None: of a job that was sent again, under another id
        if future is not None and not future.done():
            future.set_result(is_done)

    async def run(self, stop: asyncio.Event) -> None:
        """Reads receipts, until told to stop and a moment longer, while the outbox drains."""
        reading = asyncio.create_task(self._read())
        try:
            await stop.wait()
            await asyncio.wait([reading], timeout=_BLOCK_SECONDS)
        finally:
            await end(reading)

    async def _read(self) -> None:
        while True:
            try:
                first = await self._redis.blpop([self.key], timeout=_BLOCK_SECONDS)
                more = await self._redis.lpop(self.key, 1000) if first else None
            except (RedisError, OSError):
                await asyncio.sleep(1.0)
                continue
            for job_id in [first[1], *(more or ())] if first else ():
                self._tell(job_id.decode(), True)


async def send_receipt(redis: RedisClient, job: Job) -> None:
    """Tells the relay that sent a job that it is done. A lost receipt makes the job come twice, nothing worse."""
    if job.receipts:
        async with redis.pipeline(transaction=False) as pipe:
            pipe.rpush(job.receipts, job.id)
            pipe.expire(job.receipts, _RECEIPTS_SECONDS)
            await pipe.execute()


class JobSender:
    """Makes one job of a batch of rows: payloads are protobuf batches, which join byte by byte."""

    keep_ms = 0
    spacing = 0.1  # a job costs its worker as much as some hundred readings

    def __init__(self, queue: JobQueue, spec: JobSpec, redis: RedisClient, receipts: Receipts) -> None:
        self._queue = queue
        self._spec = spec
        self._memory = _Memory(redis)
        self._receipts = receipts

    async def send(self, partition: int, rows: Sequence[Row]) -> None:
        """Enqueues, and waits for the receipt."""
        payload, queue_name = b"".join(row.payload for row in rows), self._spec.queue_name(partition)
        job_id = str(uuid4())
        done = self._receipts.expect(job_id)  # before it is sent: its receipt may be the first to be back
        try:
            receipts = self._receipts.key
            await self._queue.enqueue(self._spec, payload, partition=partition, receipts=receipts, job_id=job_id)
            while not (await asyncio.wait([done], timeout=_CHECK_SECONDS))[0]:
                with suppress(RedisError):  # away, not forgetful: that is noticed by `lost_everything`
                    if not await self._queue.unfinished(job_id, queue_name):
                        if await self._queue.is_dead_letter(job_id, queue_name):
                            log.error("job %s of %s is a dead letter; what comes after it goes on", job_id, queue_name)
                            return
                        raise Lost
            if not done.result():
                raise Lost
        finally:
            self._receipts.drop(job_id)

    async def lost_everything(self) -> bool:
        """Jobs in flight are sent again by whoever waits for their receipts."""
        lost = any(await self._memory.losses())
        if lost:
            self._receipts.lose_all()
        return lost


class AnnounceSender:
    """Puts announcements in the notification log, which takes each once, and publishes them."""

    keep_ms = _KEEP_ANNOUNCED_MS
    spacing = 0.0

    def __init__(self, announcer: Announcer, redis: RedisClient) -> None:
        self._announcer = announcer
        self._memory = _Memory(redis)

    async def send(self, partition: int, rows: Sequence[Row]) -> None:
        """Logs and publishes in one round trip."""
        batch = job_pb2.AnnouncementBatch.FromString(b"".join(row.payload for row in rows))
        with ExitStack() as spans:
            for announcement in batch.announcements:
                if announcement.trace_context:
                    span = spans.enter_context(child(SPAN_PUBLISH, announcement.trace_context))
                    announcement.trace_context = carry(span)
            await self._announcer.announce(batch.announcements)

    async def lost_everything(self) -> bool:
        """Whether what was published last may be gone.

        Not after a flush, which takes along what tells that an announcement was made before. The announcer puts back
        what it remembers; the ledger, which is never more than seconds behind, has the rest of what the log has lost.
        """
        return (await self._memory.losses())[0]
