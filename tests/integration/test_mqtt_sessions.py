"""Sessions of devices in a real Redis."""

import asyncio

import pytest
from aemos_core.redis_link import RedisClient
from aemos_core.times import now_ms
from aemos_gateway import mqtt_sessions
from aemos_gateway.mqtt_sessions import KEPT_SECONDS, MOST_OF_DEVICE, Kept, Sessions
from msgspec.structs import replace

from tests.support.redis_server import until

KEY = "abc-123/c1"
KEPT = Kept({"aemos/devices/abc-123/notifications": 1}, "5-2", 7, now_ms())


async def commands(redis: RedisClient, name: str) -> int:
    found = await redis.info("commandstats")
    return int(found.get(f"cmdstat_{name}", {"calls": 0})["calls"])


async def test_another_gateway_goes_on(redis: RedisClient) -> None:
    """What one saved another one loads, for a day; what is dropped is gone; what is not saved yet counts here."""
    one, two = Sessions(redis), Sessions(redis)
    assert await one.load(KEY) is None
    saved = asyncio.Event()
    one.save(KEY, KEPT, saved.set)
    assert await one.load(KEY) == KEPT
    await asyncio.wait_for(saved.wait(), 5)
    assert await two.load(KEY) == KEPT
    assert 0 < await redis.ttl("mqtt-sessions:abc-123") <= KEPT_SECONDS
    two.drop(KEY)
    assert await two.load(KEY) is None
    await two.drain(5)
    assert await one.load(KEY) is None
    assert await redis.keys("*") == []


async def test_a_device_has_so_many_sessions(redis: RedisClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more takes the place of the longest silent; a day of silence ends one, though others of its device live."""
    clock = [now_ms()]
    monkeypatch.setattr(mqtt_sessions, "now_ms", lambda: clock[0])
    sessions = Sessions(redis)
    for number in range(MOST_OF_DEVICE + 5):
        clock[0] += 1
        key = f"abc-123/c{number}"
        assert await sessions.load(key) is None
        sessions.save(key, replace(KEPT, at=clock[0]))
        await sessions.drain(5)
    expected = {f"c{number}".encode() for number in range(5, MOST_OF_DEVICE + 5)}
    assert set(await redis.hkeys("mqtt-sessions:abc-123")) == expected
    assert await sessions.load("abc-123/c5") == replace(KEPT, at=clock[0] - MOST_OF_DEVICE + 1)
    clock[0] += KEPT_SECONDS * 1000 + 1
    newer = replace(KEPT, at=clock[0])
    sessions.save("abc-123/c6", newer)
    await sessions.drain(5)
    assert await sessions.load("abc-123/c5") is None
    assert await sessions.load("abc-123/c6") == newer
    assert await redis.hkeys("mqtt-sessions:abc-123") == [b"c6"]


async def test_a_thousand_acknowledgements_are_few_writes(redis: RedisClient) -> None:
    """What comes while a write is under way is one more write, with the newest place of each session."""
    sessions = Sessions(redis)
    for number in range(1_000):
        sessions.save(KEY, replace(KEPT, place=f"5-{number}"))
        if number % 10 == 0:
            await asyncio.sleep(0)
    await sessions.drain(5)
    kept = await Sessions(redis).load(KEY)
    assert kept is not None
    assert kept.place == "5-999"
    assert await commands(redis, "hset") < 500


async def test_a_session_taken_elsewhere_is_told_to_all_but_oneself(
    redis: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gateway hears of it, and the one that took it hears nothing new."""
    one = Sessions(redis)
    monkeypatch.setattr(mqtt_sessions, "process_name", lambda: "another")
    two = Sessions(redis)
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(mqtt_sessions.TAKEN)
        await pubsub.get_message(timeout=5)
        one.take(KEY)
        message = await pubsub.get_message(timeout=5)
        assert message is not None
        assert (one.taken_elsewhere(message["data"]), two.taken_elsewhere(message["data"])) == ("", KEY)


async def test_what_cannot_be_saved_or_told_waits(
    redis: RedisClient, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Redis nothing is lost: it is saved, and said to be, when Redis is back; so is what was taken over."""
    monkeypatch.setattr(mqtt_sessions, "_AGAIN_SECONDS", 0.05)
    sessions, saved = Sessions(redis), asyncio.Event()
    pipeline = redis.pipeline

    tries = []

    def broken(*_: object, **__: object) -> object:
        tries.append(1)
        raise ConnectionError

    monkeypatch.setattr(redis, "pipeline", broken)
    sessions.save(KEY, KEPT, saved.set)
    sessions.take(KEY)
    await until(lambda: len(tries) == 2, 5)
    assert not saved.is_set()
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(mqtt_sessions.TAKEN)
        await pubsub.get_message(timeout=5)
        monkeypatch.setattr(redis, "pipeline", pipeline)
        await asyncio.wait_for(saved.wait(), 5)
        assert await Sessions(redis).load(KEY) == KEPT
        message = await pubsub.get_message(timeout=5)
        assert message is not None
        assert message["data"].endswith(KEY.encode())
