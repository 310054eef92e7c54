"""The jobs AEMOS knows, declared once, and the queue that takes them without blocking the event loop."""

import asyncio
import base64
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import redis
from dramatiq import Message
from dramatiq.common import dq_name, xq_name

from aemos_core.broker import WakeRedisBroker
from aemos_core.times import now_ms, rfc3339

T = TypeVar("T")

MINUTE_MS = 60_000
DAY_MS = 24 * 60 * MINUTE_MS


@dataclass(frozen=True)
class JobSpec:
    """A kind of job: `name` is the actor's, `queue` may contain `{partition}`; back-off doubles from min to max.

    Dead letters: what failed `1 + max_retries` times, or is older than `max_age_ms`. They stay in Redis for 7 days.
    """

    name: str
    event_type: str
    queue: str
    max_retries: int
    min_backoff_ms: int
    max_backoff_ms: int
    time_limit_ms: int = 30_000
    max_age_ms: int = DAY_MS

    def queue_name(self, partition: int = 0) -> str:
        """The queue of a partition (0-based)."""
        return self.queue.format(partition=partition)


class Job(NamedTuple):
    """A job under way: `id` stays the same over retries, `receipts` is where its sender waits for it, or empty."""

    id: str
    receipts: str


_RULES, _REPORTS, _EMAIL = "rule-engine-events-{partition}", "rules-reports", "notify-email"
# Name, event type, queue, retries, back-off from and to; the rest as it is for most.
EVALUATE_READINGS = JobSpec("evaluate_readings", "telemetry-data", _RULES, 10, 500, 5_000)
RUN_CHAINS = JobSpec("run_chains", "scheduled", _RULES, 5, 1_000, MINUTE_MS, max_age_ms=60 * MINUTE_MS)
RESUME_RUNS = JobSpec("resume_runs", "deadline", _RULES, 10, 500, MINUTE_MS)
RECORD_NOTIFICATIONS = JobSpec(
    "record_notifications", "record-notifications", "notify-ledger", 20, 1_000, 5 * MINUTE_MS
)
GENERATE_REPORT = JobSpec(
    "generate_report", "generate-report", _REPORTS, 8, 5_000, 10 * MINUTE_MS, time_limit_ms=2 * MINUTE_MS
)
RUN_READING_CHAINS = replace(
    RUN_CHAINS, name="run_reading_chains", queue=_REPORTS, time_limit_ms=GENERATE_REPORT.time_limit_ms
)
"""Scheduled chains that read sensors: asking takes a while, and the rule queue's readings must not wait for it."""
SEND_EMAIL = JobSpec("send_email", "send-email", _EMAIL, 10, 10_000, 30 * MINUTE_MS, time_limit_ms=MINUTE_MS)
SEND_DELIVERY = JobSpec("send_delivery", "send-delivery", "notify-deliveries", 8, 5_000, 10 * MINUTE_MS)
DELIVER_EMAIL = replace(SEND_DELIVERY, name="deliver_email", queue=_EMAIL)
"""Deliveries by e-mail: a webhook that hangs must not hold them up, nor a slow mail server webhooks."""

# KEYS: the messages of a queue and of its delay queue. ARGV: how the id begins. Atomic: a retry moves between the two.
UNFINISHED = """
for _, key in ipairs(KEYS) do
  for _, id in ipairs(redis.call('HKEYS', key)) do
    if string.sub(id, 1, #ARGV[1]) == ARGV[1] then return 1 end
  end
end
return 0
"""


class JobQueue:
    """Puts jobs on their queues from one thread of its own.

    At most `bound` calls are under way; more wait for their turn. A call ends within `deadline_s`, waiting included, or
    raises redis.TimeoutError: the job may or may not be on its queue then, as after any redis.ConnectionError.
    """

    def __init__(self, broker: WakeRedisBroker, *, bound: int = 64, deadline_s: float = 5.0) -> None:
        self._broker = broker
        self._deadline_s = deadline_s
        self._slots = asyncio.Semaphore(bound)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="job-queue")
        self._unfinished = broker.client.register_script(UNFINISHED)

    async def enqueue(
        self, spec: JobSpec, payload: bytes, *, partition: int = 0, receipts: str = "", job_id: str = ""
    ) -> str:
        """Returns the job's id, a new one by default, once Redis has the job. Raises redis.RedisError."""
        message: Message[Any] = Message(
            queue_name=spec.queue_name(partition),
            actor_name=spec.name,
            args=(),
            kwargs={
                "eventType": spec.event_type,
                "payload": base64.b64encode(payload).decode(),
                "enqueuedAt": rfc3339(now_ms()),
                "receipts": receipts,
            },
            options={},
            message_id=job_id or str(uuid4()),
        )
        await self._call(lambda: self._broker.enqueue(message))
        return message.message_id

    async def unfinished(self, message_id: str, queue: str) -> bool:
        """Whether Redis still has the job: queued, delayed or in a worker's hands. Dead letters are finished.

        `queue` is the name with its partition. The cost grows with the jobs in that queue. Raises redis.RedisError.
        """
        return await self._is_in((queue, dq_name(queue)), message_id)

    async def is_dead_letter(self, message_id: str, queue: str) -> bool:
        """Whether the job was given up. As `unfinished`."""
        return await self._is_in((xq_name(queue),), message_id)

    async def _is_in(self, queues: Sequence[str], message_id: str) -> bool:
        keys = [f"{self._broker.namespace}:{name}.msgs" for name in queues]
        return bool(await self._call(lambda: self._unfinished(keys=keys, args=[f"{message_id}:"])))

    def close(self) -> None:
        """Ends the thread; calls not yet begun are dropped, a call under way ends by its socket timeout."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _call(self, work: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._slots.acquire()
                future = self._thread.submit(work)
                self._release_when_done(future)
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            raise redis.TimeoutError(f"the job queue took longer than {self._deadline_s} s") from error

    def _release_when_done(self, future: "Future[T]") -> None:
        """A caller that gave up does not free the slot: the thread is still busy with its call."""
        loop = asyncio.get_running_loop()

        def release(_: "Future[T]") -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._slots.release)

        future.add_done_callback(release)
