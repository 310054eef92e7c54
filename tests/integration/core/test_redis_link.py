"""Facts about subscriptions: they come back, and what ends them for good ends the process."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from aemos_core import redis_link
from aemos_core.redis_link import RedisClient, Subscriber, open_redis

from tests.faults.proxy import Proxy
from tests.support.ports import free_port
from tests.support.redis_server import redis_server, until


async def test_a_black_hole_is_noticed(
    redis_url: str, redis: RedisClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection on which nothing comes any more, not even the answer to a ping, is made again."""
    monkeypatch.setattr(redis_link, "_PING_SECONDS", 0.1)
    heard: list[bytes] = []
    confirmed: list[None] = []
    port = int(redis_url.rsplit(":", 1)[1].split("/", maxsplit=1)[0])
    with Proxy.to(port) as between:
        async with open_redis(f"redis://127.0.0.1:{between.port}/0") as client, asyncio.TaskGroup() as group:
            stop = asyncio.Event()
            group.create_task(Subscriber(client, {"c": heard.append}, lambda: confirmed.append(None)).run(stop))
            await until(lambda: len(confirmed) == 1, 5)
            between.hold()
            await until(lambda: "subscription lost: TimeoutError" in caplog.messages, 5)
            between.heal()
            await until(lambda: len(confirmed) == 2, 15)
            await redis.publish("c", "again")
            await until(lambda: heard == [b"again"], 5)
            stop.set()


async def test_every_outage_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And after each the first try to come back is made soon, as after the first of them."""
    port, confirmed = free_port(), list[None]()
    stop = asyncio.Event()
    caplog.set_level(logging.WARNING, "aemos.redis")

    def told() -> int:
        return sum(record.name == "aemos.redis" for record in caplog.records)

    async with open_redis(f"redis://127.0.0.1:{port}/0") as client, asyncio.TaskGroup() as group:
        subscriber = Subscriber(client, {"c": lambda _: None}, lambda: confirmed.append(None))
        for outage in range(3):
            with redis_server(tmp_path, port):
                if not outage:
                    group.create_task(subscriber.run(stop))
                await until(lambda expected=outage + 1: len(confirmed) == expected, 5)  # type: ignore[misc]
            await until(lambda expected=outage + 1: told() == expected, 5)  # type: ignore[misc]
        stop.set()


async def test_what_cannot_catch_up_dies(redis: RedisClient) -> None:
    """A listener that failed for good must not be a process that hears nothing and looks alive."""

    def fail() -> None:
        raise ValueError("cannot catch up")

    with pytest.raises(ValueError, match="cannot catch up"):
        await asyncio.wait_for(Subscriber(redis, {"c": lambda _: None}, fail).run(asyncio.Event()), 5)
