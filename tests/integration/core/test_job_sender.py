"""Outbox rows as jobs: settled by the worker's receipt, sent again when Redis forgot, given up with the dead letter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aemos_core.broker import open_broker
from aemos_core.errors import unavailable
from aemos_core.jobs import EVALUATE_READINGS, Job, JobQueue
from aemos_core.outbox import Row
from aemos_core.outbox_lane import Lost
from aemos_core.outbox_senders import JobSender, Receipts, send_receipt
from aemos_core.redis_link import RedisClient, open_redis
from aemos_core.worker import Handler, JobWorker, actor_on_loop, is_outage
from redis.exceptions import TimeoutError as RedisTimeout

from tests.support.redis_server import redis_server

SPEC = replace(EVALUATE_READINGS, max_retries=2, min_backoff_ms=20, max_backoff_ms=20)
ROWS = [Row(SPEC.name, 0, b"a"), Row(SPEC.name, 0, b"b")]
WITHIN_S = 10.0


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisClient]:
    with redis_server(tmp_path) as url:
        async with open_redis(url) as client:
            yield client


@pytest.fixture
async def sender(redis: RedisClient) -> AsyncIterator[JobSender]:
    host = redis.connection_pool.connection_kwargs
    broker = open_broker(f"redis://{host['host']}:{host['port']}/0")
    queue, receipts, stop = JobQueue(broker), Receipts(redis, "relay"), asyncio.Event()
    reading = asyncio.create_task(receipts.run(stop))
    yield JobSender(queue, SPEC, redis, receipts)
    stop.set()
    await reading
    queue.close()
    broker.close()


@asynccontextmanager
async def working(redis: RedisClient, handler: Handler) -> AsyncIterator[None]:
    host = redis.connection_pool.connection_kwargs
    broker, stop = open_broker(f"redis://{host['host']}:{host['port']}/0"), asyncio.Event()
    actor_on_loop(broker, SPEC, handler, outlasts=is_outage)
    running = asyncio.create_task(JobWorker(broker, [SPEC.queue_name()], drain_s=5).run(stop))
    try:
        yield
    finally:
        stop.set()
        await running
        broker.close()


async def test_a_job_outlasts_an_outage(redis: RedisClient, sender: JobSender) -> None:
    """What a job needs is away for longer than its retries last: it is done afterwards, as if nothing had been."""
    payloads: list[bytes] = []

    async def handler(payload: bytes, job: Job) -> None:
        payloads.append(payload)
        if len(payloads) <= 2 * SPEC.max_retries:
            raise unavailable("away")
        await send_receipt(redis, job)

    async with working(redis, handler), asyncio.timeout(WITHIN_S):
        await sender.send(0, ROWS)
    assert payloads == [b"ab"] * (2 * SPEC.max_retries + 1)


async def test_a_dead_letter_does_not_hold_up_what_follows(
    redis: RedisClient, sender: JobSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that can never succeed is given up after its retries; the lane goes on."""
    monkeypatch.setattr("aemos_core.outbox_senders._CHECK_SECONDS", 0.2)
    runs: list[str] = []

    async def handler(payload: bytes, job: Job) -> None:
        runs.append(job.id)
        raise ValueError

    async with working(redis, handler), asyncio.timeout(WITHIN_S):
        await sender.send(0, ROWS)
    assert len(runs) == 1 + SPEC.max_retries


async def test_a_flush_is_noticed(redis: RedisClient, sender: JobSender) -> None:
    """Redis forgets a job that nobody has begun: whoever waits for it is told to send it again."""
    assert not await sender.lost_everything()
    sending = asyncio.create_task(sender.send(0, ROWS))
    async with asyncio.timeout(WITHIN_S):
        while not await redis.keys("*.msgs"):  # noqa: ASYNC110  a condition of Redis
            await asyncio.sleep(0.01)
    await redis.flushall()
    assert await sender.lost_everything()
    with pytest.raises(Lost):
        await sending
    assert not await sender.lost_everything()


async def test_a_receipt_that_nobody_waits_for_is_not_kept(redis: RedisClient, sender: JobSender) -> None:
    """A job that came twice leaves a receipt behind: the next one is understood, and nothing grows."""

    async def handler(payload: bytes, job: Job) -> None:
        await send_receipt(redis, job._replace(id="of a job that was sent again"))
        await send_receipt(redis, job)

    async with working(redis, handler), asyncio.timeout(WITHIN_S):
        await sender.send(0, ROWS)
    assert sender._receipts._jobs == {}


async def test_a_job_is_waited_for_while_redis_does_not_answer(
    redis: RedisClient, sender: JobSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is still there cannot be asked: it is not sent again for that."""
    monkeypatch.setattr("aemos_core.outbox_senders._CHECK_SECONDS", 0.02)
    asked, runs = asyncio.Event(), 0

    async def unfinished(job_id: str, queue: str) -> bool:
        asked.set()
        raise RedisTimeout

    async def handler(payload: bytes, job: Job) -> None:
        nonlocal runs
        runs += 1
        await asked.wait()
        await send_receipt(redis, job)

    monkeypatch.setattr(sender._queue, "unfinished", unfinished)
    async with working(redis, handler), asyncio.timeout(WITHIN_S):
        await sender.send(0, ROWS)
    assert runs == 1
