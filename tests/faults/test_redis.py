"""Redis is away, or has forgotten: readings are acknowledged all the same, and judged afterwards, each once."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable

import httpx
import pytest
import redis

from tests.faults.checker import check, wait_until_settled
from tests.faults.installation import Installation
from tests.faults.load import History, load
from tests.faults.nemesis import FAULTS, Inflict, during
from tests.support.redis_server import until

DEVICES = 9
SLICE_SECONDS = 10.0
SETTLED_SECONDS = 60.0
HELD_SECONDS = 15.0


def _counts(histories: list[History]) -> list[int]:
    return [len(history.acknowledged) for history in histories]


async def _readiness(broken: Installation) -> tuple[int, str]:
    async with httpx.AsyncClient() as client:
        answer = await client.get(broken.stack.demo["httpUrl"] + "/readyz")
    return answer.status_code, answer.text


full = during(lambda it: it.limit_redis(1), lambda it: it.limit_redis(0))


@pytest.mark.parametrize(
    ("fault", "seconds"), [(FAULTS["kill redis"], 60.0), (full, 10.0)], ids=["away for a minute", "out of memory"]
)
async def test_without_redis_only_rules_are_late(broken: Installation, fault: Inflict, seconds: float) -> None:
    """Every device is acknowledged all the time; what waits in the outbox is judged when Redis is well."""
    async with load(broken.stack, broken.fresh(DEVICES)) as histories:
        await until(lambda: min(_counts(histories)) > 20, SLICE_SECONDS, "readings before")
        with fault(broken):
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                before = _counts(histories)
                await asyncio.sleep(SLICE_SECONDS)
                assert all(now > then for now, then in zip(_counts(histories), before, strict=True))
            assert broken.rows("SELECT 1 FROM {ingest}.outbox WHERE kind = 'evaluate_readings' LIMIT 1")
            assert await _readiness(broken) == (200, "degraded: redis takes no writes")
    await asyncio.to_thread(wait_until_settled, broken.rows, SETTLED_SECONDS, broken.queue_url)
    assert await _readiness(broken) == (200, "ok")
    await asyncio.to_thread(check, histories, broken.rows)


def _restart(it: Installation) -> None:
    it.redis.kill()
    for file in it.redis_data.iterdir():
        file.unlink()
    it.redis.start()


@pytest.mark.parametrize("forget", [Installation.flush_redis, _restart], ids=["flushed", "restarted empty"])
async def test_what_redis_held_is_sent_again(broken: Installation, forget: Callable[[Installation], None]) -> None:
    """Jobs that no worker had begun are gone with Redis' memory; their readings are judged within seconds."""
    (worker,) = broken.stack.pids("aemos_rules worker")
    os.kill(worker, signal.SIGSTOP)
    try:
        async with load(broken.stack, broken.fresh(DEVICES)) as histories:
            await until(lambda: min(_counts(histories)) > 20, SLICE_SECONDS, "readings")
        with redis.Redis.from_url(broken.queue_url) as client:
            assert list(client.scan_iter("*rule-engine-events*.msgs"))
        forget(broken)
    finally:
        os.kill(worker, signal.SIGCONT)
    await asyncio.to_thread(wait_until_settled, broken.rows, HELD_SECONDS, broken.queue_url)
    await asyncio.to_thread(check, histories, broken.rows)
