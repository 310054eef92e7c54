"""What failed for good is kept with its error, and is sent again or dropped by command."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
from aemos_client.dead_letters import DeadLetters, act
from aemos_core.broker import WakeRedisBroker, open_broker
from aemos_core.jobs import RECORD_NOTIFICATIONS, Job, JobQueue
from aemos_core.worker import JobWorker, actor_on_loop

from tests.support.redis_server import redis_server, until

SPEC = replace(RECORD_NOTIFICATIONS, max_retries=0)
QUEUE = SPEC.queue_name()


@pytest.fixture
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WakeRedisBroker]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        broker = open_broker(url)
        yield broker
        broker.close()


async def test_a_job_that_failed_is_kept_and_replayed(
    broker: WakeRedisBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Listed with its error; replayed it runs again with its payload; dropped it is gone."""
    letters, done, fails = DeadLetters(broker), [], [True, True, False]

    async def handle(payload: bytes, job: Job) -> None:
        if fails.pop(0):
            raise ValueError("it does not add up")
        done.append(payload)

    actor_on_loop(broker, SPEC, handle)
    queue, stop = JobQueue(broker), asyncio.Event()
    worker = asyncio.create_task(JobWorker(broker, [QUEUE]).run(stop))
    try:
        for payload in (b"one", b"two"):
            await queue.enqueue(SPEC, payload)
        await until(lambda: len(list(letters.all())) == 2, 10)
        first, second = letters.all()
        assert (first.queue, first.job) == (QUEUE, SPEC.name)
        assert "it does not add up" in first.error
        assert act(letters, "list", []) == 0
        assert "it does not add up" in capsys.readouterr().out
        assert letters.replay(QUEUE, first.id)
        await until(lambda: len(done) == 1, 10)
        assert [letter.id for letter in letters.all()] == [second.id]
        assert act(letters, "drop", [f"{QUEUE}/{second.id}"]) == 0
        assert act(letters, "drop", [f"{QUEUE}/{second.id}"]) == 1
        assert list(letters.all()) == []
    finally:
        stop.set()
        await worker
        queue.close()
