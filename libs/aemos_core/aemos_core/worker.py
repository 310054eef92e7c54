"""Runs jobs in this process: Dramatiq's worker threads as a component, job bodies as coroutines on the event loop."""

import asyncio
import base64
from collections.abc import Awaitable, Callable, Iterable

import dramatiq
from dramatiq.middleware import CurrentMessage
from redis.exceptions import RedisError

from aemos_core.broker import WakeRedisBroker
from aemos_core.errors import AemosError, Kind
from aemos_core.jobs import Job, JobSpec
from aemos_core.outbox_senders import send_receipt
from aemos_core.redis_link import RedisClient
from aemos_core.waiting import wait

DRAIN_S = 20.0
CHECK_THREADS_S = 2.0
LOOP_GRACE_S = 1.0
BACKSTOP_MS = 5_000

Handler = Callable[[bytes, Job], Awaitable[None]]


def with_receipt(jobs_redis: RedisClient, work: Callable[[bytes], Awaitable[None]]) -> Handler:
    """The handler that tells the relay which sent a job when it is done: what the relay holds is settled then."""

    async def handler(payload: bytes, job: Job) -> None:
        await work(payload)
        await send_receipt(jobs_redis, job)

    return handler


def never(_: BaseException) -> bool:
    """No failure of a job is an outage."""
    return False


def is_outage(error: BaseException) -> bool:
    """Whether the job failed because something that it needs is away, and will succeed when that is back."""
    return isinstance(error, RedisError) or (isinstance(error, AemosError) and error.kind is Kind.UNAVAILABLE)


def actor_on_loop(
    broker: WakeRedisBroker,
    spec: JobSpec,
    handler: Handler,
    *,
    never_retry: tuple[type[Exception], ...] = (),
    outlasts: Callable[[BaseException], bool] = never,
) -> None:
    """Declares the actor of `spec`; its body is `handler(payload, job)` on the running loop.

    Call it from the loop, before the worker starts. A worker thread waits for the handler: threads bound the
    concurrency. The handler is cancelled at the time limit. What it raises is retried with back-off, or becomes a
    dead letter: after `max_retries`, or at once when it is one of `never_retry`. What `outlasts` says of is retried
    until the job is too old. A handler that ignores its cancellation may meet its retry.
    """
    loop = asyncio.get_running_loop()
    limit_s = spec.time_limit_ms / 1000

    async def handle(payload: bytes, job: Job) -> None:
        async with asyncio.timeout(limit_s):
            await handler(payload, job)

    def body(*, eventType: str, payload: str, enqueuedAt: str, receipts: str = "") -> None:
        message = CurrentMessage.get_current_message()
        assert message is not None  # the broker's middleware sets it around every job
        job = Job(message.message_id, receipts)
        future = asyncio.run_coroutine_threadsafe(handle(base64.b64decode(payload), job), loop)
        try:
            future.result(limit_s + LOOP_GRACE_S)
        except TimeoutError:
            future.cancel()  # unless the handler timed out, the loop is stuck: the thread must not be stuck with it
            raise

    dramatiq.actor(
        actor_name=spec.name,
        queue_name=spec.queue_name(),
        broker=broker,
        retry_when=lambda retries, error: retries < spec.max_retries or outlasts(error),
        min_backoff=spec.min_backoff_ms,
        max_backoff=spec.max_backoff_ms,
        max_age=spec.max_age_ms,
        time_limit=spec.time_limit_ms + BACKSTOP_MS,
        throws=never_retry,
    )(body)


class JobWorker:
    """A component that works on `queues` (names with their partition) with `threads` threads, two jobs prefetched each.

    At stop it finishes what is under way within `drain_s` and puts back what has not begun. A job that takes longer is
    left held in Redis, and another worker gets it when this process' heartbeats have ceased (5 s).
    """

    def __init__(
        self, broker: WakeRedisBroker, queues: Iterable[str], *, threads: int = 1, drain_s: float = DRAIN_S
    ) -> None:
        self._broker = broker
        self._queues = set(queues)
        self._drain_ms = int(drain_s * 1000)
        self._worker = dramatiq.Worker(broker, queues=self._queues, worker_threads=threads)

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set. Raises RuntimeError when one of Dramatiq's threads has died. Runs once."""
        for queue in self._queues:
            self._broker.declare_queue(queue)
        self._broker.emit_after("process_boot")  # its command line would: TimeLimit starts its clock on it
        self._worker.start()
        try:
            while not stop.is_set():
                self._check_threads()
                await wait(stop, CHECK_THREADS_S)
        finally:
            await asyncio.to_thread(self._worker.stop, self._drain_ms)

    def _check_threads(self) -> None:
        threads = (*self._worker.workers, *self._worker.consumers.values())
        dead = [thread.name for thread in threads if not thread.is_alive()]
        if dead:
            raise RuntimeError(f"job threads died: {dead}")
