"""The job queue on a real Redis: woken consumers, leases, retries, deaths and outages."""

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import redis
from aemos_core.broker import WakeRedisBroker, open_broker
from aemos_core.jobs import EVALUATE_READINGS, Job, JobQueue, JobSpec
from aemos_core.worker import Handler, JobWorker, actor_on_loop

from tests.support.redis_server import redis_server, until

pytestmark = pytest.mark.asyncio

SPEC = replace(EVALUATE_READINGS, max_retries=2, min_backoff_ms=100, max_backoff_ms=150)
QUEUE = SPEC.queue_name(0)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with redis_server(tmp_path) as address:
        yield address


@contextmanager
def opened(url: str) -> Iterator[WakeRedisBroker]:
    broker = open_broker(url)
    try:
        yield broker
    finally:
        broker.close()


@asynccontextmanager
async def working(
    broker: WakeRedisBroker,
    handler: Handler,
    *,
    spec: JobSpec = SPEC,
    partitions: int = 1,
    never_retry: tuple[type[Exception], ...] = (),
) -> AsyncIterator[JobQueue]:
    """A worker with `handler` in this process, and the queue to it."""
    actor_on_loop(broker, spec, handler, never_retry=never_retry)
    queue, stop = JobQueue(broker), asyncio.Event()
    worker = JobWorker(broker, [spec.queue_name(p) for p in range(partitions)], drain_s=5)
    running = asyncio.create_task(worker.run(stop))
    try:
        yield queue
    finally:
        stop.set()
        await running
        queue.close()


@contextmanager
def victim(url: str) -> Iterator[None]:
    """A process that holds jobs for ever, killed with -9 at the end of the block."""
    command = [sys.executable, "-m", "tests.integration.test_broker", url]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        yield
    finally:
        process.kill()
        process.wait()


def idle(broker: WakeRedisBroker, queues: int = 1) -> bool:
    """Whether the consumers of so many queues and their delay queues wait inside Redis."""
    return int(broker.client.info("clients")["blocked_clients"]) == 2 * queues


def dead_letters(broker: WakeRedisBroker) -> int:
    return int(broker.client.zcard(f"{broker.namespace}:{QUEUE}.XQ"))


def waiting(broker: WakeRedisBroker) -> int:
    return int(broker.client.llen(f"{broker.namespace}:{QUEUE}"))


def held(broker: WakeRedisBroker) -> int:
    """Jobs of the queue that some worker has taken."""
    keys = broker.client.keys(f"{broker.namespace}:__acks__.*.{QUEUE}")
    return sum(int(broker.client.scard(key)) for key in keys)


async def test_idle_worker_is_woken(url: str) -> None:
    """A job put on an idle worker's queue runs at once: the worker waits inside Redis and does not poll."""
    ran: asyncio.Queue[float] = asyncio.Queue()

    async def handler(payload: bytes, job: Job) -> None:
        ran.put_nowait(time.monotonic())

    latencies = []
    with opened(url) as broker:
        async with working(broker, handler) as queue:
            for _ in range(20):
                await until(lambda: idle(broker), 5)
                began = time.monotonic()
                await queue.enqueue(SPEC, b"")
                latencies.append(await asyncio.wait_for(ran.get(), 5) - began)
    assert statistics.median(latencies) < 0.05, latencies


async def test_handler_gets_what_was_enqueued(url: str) -> None:
    """Payload, id and receipts arrive as they were given; the job is unfinished until it ran."""
    seen: dict[str, object] = {}
    go_on = asyncio.Event()

    async def handler(payload: bytes, job: Job) -> None:
        seen.update(payload=payload, job=job)
        await go_on.wait()

    with opened(url) as broker:
        async with working(broker, handler) as queue:
            job_id = await queue.enqueue(SPEC, b"\x00\xff", receipts="receipts:1")
            await until(lambda: bool(seen), 5)
            assert await queue.unfinished(job_id, QUEUE)
            assert not await queue.unfinished("another", QUEUE)
            go_on.set()
            await until(lambda: held(broker) == 0, 5)
            assert not await queue.unfinished(job_id, QUEUE)
    assert seen == {"payload": b"\x00\xff", "job": Job(job_id, "receipts:1")}


async def test_worker_takes_nothing_without_the_lease(url: str) -> None:
    """A queue that may not be fetched from keeps its jobs, and is served at once when it may."""
    ran: list[bytes] = []
    allowed = {SPEC.queue_name(1)}

    async def handler(payload: bytes, job: Job) -> None:
        ran.append(payload)

    with opened(url) as broker:
        broker.may_fetch = allowed.__contains__
        async with working(broker, handler, partitions=2) as queue:
            await queue.enqueue(SPEC, b"kept", partition=0)
            await queue.enqueue(SPEC, b"run", partition=1)
            await until(lambda: ran == [b"run"], 5)
            await until(lambda: idle(broker, queues=1), 5)
            assert waiting(broker) == 1
            allowed.add(QUEUE)
            broker.permissions_changed()
            await until(lambda: ran == [b"run", b"kept"], 0.25)


async def test_worker_without_the_lease_keeps_what_it_runs(url: str) -> None:
    """Who lost its lease in the middle of a job still sends heartbeats, so that nobody else runs the job too."""
    go_on = asyncio.Event()

    async def handler(payload: bytes, job: Job) -> None:
        await go_on.wait()

    def last_heartbeat_ms() -> float:
        score = broker.client.zscore(f"{broker.namespace}:__heartbeats__", broker.broker_id)
        return float(score or 0)

    with opened(url) as broker:
        async with working(broker, handler) as queue:
            await queue.enqueue(SPEC, b"")
            await until(lambda: held(broker) == 1, 5)
            broker.may_fetch = lambda queue: False
            await until(lambda: int(broker.client.info("clients")["blocked_clients"]) == 0, 5)
            lost_ms = last_heartbeat_ms()
            await until(lambda: last_heartbeat_ms() > lost_ms + 1_500, 5)
            go_on.set()


async def test_retries_back_off_and_end_in_dead_letters(url: str) -> None:
    """A failing job runs 1 + max_retries times, waits in between, is unfinished meanwhile and a dead letter then."""
    runs: list[float] = []

    async def handler(payload: bytes, job: Job) -> None:
        runs.append(time.monotonic())
        raise ValueError("always")

    with opened(url) as broker:
        async with working(broker, handler) as queue:
            job_id = await queue.enqueue(SPEC, b"")
            await until(lambda: len(runs) == 1, 5)
            assert await queue.unfinished(job_id, QUEUE)
            await until(lambda: dead_letters(broker) == 1, 5)
            assert not await queue.unfinished(job_id, QUEUE)
    gaps = [later - earlier for earlier, later in pairwise(runs)]
    assert len(runs) == 3
    assert all(0.07 < gap < 1 for gap in gaps), gaps


async def test_what_must_not_be_retried_is_a_dead_letter_at_once(url: str) -> None:
    """An error named in never_retry ends the job after one run."""
    runs: list[str] = []

    async def handler(payload: bytes, job: Job) -> None:
        runs.append(job.id)
        raise LookupError

    with opened(url) as broker:
        async with working(broker, handler, never_retry=(LookupError,)) as queue:
            await queue.enqueue(SPEC, b"")
            await until(lambda: dead_letters(broker) == 1, 5)
    assert len(runs) == 1


async def test_handler_is_cancelled_at_its_time_limit(url: str) -> None:
    """A handler that runs too long is cancelled, and its job is tried again."""
    runs: list[str] = []

    async def handler(payload: bytes, job: Job) -> None:
        try:
            if not runs:
                await asyncio.Event().wait()
            runs.append("ran")
        except asyncio.CancelledError:
            runs.append("cancelled")
            raise

    with opened(url) as broker:
        async with working(broker, handler, spec=replace(SPEC, time_limit_ms=200)) as queue:
            await queue.enqueue(SPEC, b"")
            await until(lambda: runs == ["cancelled", "ran"], 5)


async def test_stop_finishes_the_job_under_way_and_returns_the_rest(url: str) -> None:
    """At stop the running job ends normally and the prefetched one is on the queue again."""
    started, go_on, done = asyncio.Event(), asyncio.Event(), []

    async def handler(payload: bytes, job: Job) -> None:
        started.set()
        await go_on.wait()
        done.append(payload)

    with opened(url) as broker:
        async with working(broker, handler) as queue:
            for payload in (b"first", b"second"):
                await queue.enqueue(SPEC, payload)
            await until(lambda: started.is_set() and held(broker) == 2, 5)
            asyncio.get_running_loop().call_later(0.1, go_on.set)  # after the stop, which leaving this block is
        assert (done, waiting(broker), held(broker)) == ([b"first"], 1, 0)


async def test_jobs_of_a_killed_worker_come_back(url: str) -> None:
    """Every job is done within 15 s of kill -9 of the worker that held some of them."""
    done: set[bytes] = set()

    async def handler(payload: bytes, job: Job) -> None:
        done.add(payload)

    with opened(url) as broker:
        queue = JobQueue(broker)
        for number in range(10):
            await queue.enqueue(SPEC, str(number).encode())
        with victim(url):
            await until(lambda: held(broker) == 2, 15)
        async with working(broker, handler):
            await until(lambda: len(done) == 10, 15)
        queue.close()


async def test_jobs_stranded_by_a_lost_answer_come_back(url: str) -> None:
    """What Redis believes this living process holds, and it does not, is put back when the consumer starts again."""
    done: list[bytes] = []

    async def handler(payload: bytes, job: Job) -> None:
        done.append(payload)

    with opened(url) as broker:
        queue = JobQueue(broker)
        await queue.enqueue(SPEC, b"stranded")
        broker.do_fetch(QUEUE, 1)
        assert (waiting(broker), held(broker)) == (0, 1)
        async with working(broker, handler):
            await until(lambda: done == [b"stranded"], 2)
        queue.close()


async def test_failure_during_an_outage_is_still_retried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that fails while Redis is away runs again when it is back, and the outage uses up none of its retries."""
    monkeypatch.setattr("aemos_core.broker.OUTAGE_PAUSE_S", 0.02)
    runs: list[str] = []
    redis_is_down = asyncio.Event()

    async def handler(payload: bytes, job: Job) -> None:
        runs.append(job.id)
        if len(runs) == 1:
            await redis_is_down.wait()
            raise ValueError("first time")

    with redis_server(tmp_path) as url:
        broker = open_broker(url)
        async with working(broker, handler) as queue:
            await queue.enqueue(SPEC, b"")
            await until(lambda: len(runs) == 1, 5)
            os.kill(int(broker.client.info("server")["process_id"]), 9)
            await until(lambda: not answers(url), 5)
            redis_is_down.set()
            await until(lambda: caplog.text.count("Redis refused the retry") > SPEC.max_retries, 5)
            with redis_server(tmp_path, port=int(url.split(":")[2].split("/")[0])):
                await until(lambda: len(runs) >= 2, 20)
        broker.close()


async def test_enqueue_ends_at_its_deadline() -> None:
    """A Redis that accepts and never answers costs the caller the deadline, not more."""
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, opened(f"redis://127.0.0.1:{silent.getsockname()[1]}/0") as broker:
        queue = JobQueue(broker, bound=1, deadline_s=0.2)
        began = time.monotonic()
        for _ in range(2):  # the second does not even get a slot
            with pytest.raises(redis.TimeoutError):
                await queue.enqueue(SPEC, b"")
        assert time.monotonic() - began < 2
        queue.close()


def answers(url: str) -> bool:
    with redis.Redis.from_url(url) as client, suppress(redis.RedisError):
        return bool(client.ping())
    return False


async def hold_jobs_for_ever(url: str) -> None:
    """The victim: takes jobs and never finishes one."""

    async def handler(payload: bytes, job: Job) -> None:
        await asyncio.Event().wait()

    with opened(url) as broker:
        async with working(broker, handler):
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(hold_jobs_for_ever(sys.argv[1]))
