"""What a client missed is replayed to it, in order, and then it hears live: no gap, no double."""

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from aemos.v1.job_pb2 import Announcement
from aemos_core.announce import Announcer
from aemos_core.identity import ANYBODY, set_caller
from aemos_core.names import notification_log
from aemos_core.redis_link import RedisClient
from aemos_core.times import now_ms
from aemos_notify import client as client_module
from aemos_notify import replay, service
from redis.exceptions import RedisError

from tests.support.notify import WITHIN_S, Browser, Notify, browser, listed_ids, running_notify
from tests.support.redis_server import until

pytestmark = pytest.mark.asyncio

ABC, OTHER = "device-uuid-abc-123", "device-uuid-other-9"
ROOMS: Sequence[list[str]] = ([ABC, "device-42"], [OTHER], ["alarms-1", OTHER], ["rule-chain-42"], [])
SUBSCRIPTIONS: dict[str, Any] = {
    "device": {"deviceUuid": "abc-123"},
    "other": {"deviceId": 9},
    "alarms": {"alarms": True},
    "chain": {"ruleChainId": 42},
    "organization": {"organizationId": 1},
}
HEARD = {"device": {0}, "other": {1, 2}, "alarms": {2}, "chain": {3}, "organization": {0, 1, 2, 3, 4}}
"""Which of ROOMS a subscription hears, beside those for everybody."""
EVERYBODY = 4


def announcement(number: int, kind: int) -> Announcement:
    return Announcement(
        uuid=f"n{number}",
        organization_id=1,
        event="alarm" if kind == 2 else "device-state-change",
        rooms=ROOMS[kind],
        notification_json=json.dumps({"type": "t", "number": number}),
    )


async def announce(redis: RedisClient, numbers: Sequence[int], kind: int = 0) -> None:
    await Announcer(redis).announce([announcement(number, kind) for number in numbers])


def numbers(found: Browser) -> list[int]:
    return [payload["number"] for _, payload in found.heard]


async def place_of(redis: RedisClient, number: int) -> str:
    """The id of the notification with this number; of the beginning when it is negative."""
    entries: Any = await redis.xrange(notification_log(1))
    return next((i.decode() for i, f in entries if json.loads(f[b"n"])["number"] == number), "0-1")


async def test_what_was_missed_comes_first(redis: RedisClient, redis_url: str, tmp_path: Path) -> None:
    """Behind the id given, of the rooms subscribed and for everybody, before the acknowledgement; then what is live."""
    async with running_notify(redis_url, tmp_path) as notify, browser(notify) as found:
        for number in range(20):
            await announce(redis, [number], number % 5)
        after = await place_of(redis, 5)
        answer = await found.subscribe({"deviceUuid": "abc-123", "after": after})
        assert answer == {"ok": True, "rooms": [ABC, "device-42"]}
        await announce(redis, [20])
        await found.hears(6)
        assert numbers(found) == [9, 10, 14, 15, 19, 20]
        assert found.heard[-1][1].keys() == {"type", "number", "traceId", "id"}


async def test_what_was_live_is_not_told_again(
    redis: RedisClient, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that subscribes long after it connected heard what was for everybody meanwhile."""
    monkeypatch.setattr(client_module, "GREETING_SECONDS", 0)
    async with running_notify(redis_url, tmp_path) as notify, browser(notify) as found:
        for number in range(10):
            await announce(redis, [number], number % 5)
        await found.hears(2)
        after = await place_of(redis, 3)
        assert (await found.subscribe({"deviceUuid": "abc-123", "after": after}))["ok"]
        assert numbers(found) == [4, 9, 5]


async def test_replay_over_pages_is_the_newest_and_says_so(
    redis: RedisClient, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than is replayed, or more than is looked through, is cut at its old end; the client is told."""
    monkeypatch.setattr(service, "_ENTRIES_AT_ONCE", 7)
    await announce(redis, range(100))
    async with running_notify(redis_url, tmp_path) as notify:
        after = await place_of(redis, 9)
        async with browser(notify) as found:
            assert await found.subscribe({"deviceId": 42, "after": after}) == {"ok": True, "rooms": [ABC, "device-42"]}
            assert numbers(found) == list(range(10, 100))
        for limit in ("MOST_REPLAYED", "MOST_LOOKED_AT"):
            with monkeypatch.context() as patched:
                patched.setattr(replay, limit, 20)
                async with browser(notify) as found:
                    answer = await found.subscribe({"deviceId": 42, "after": after})
                    assert answer["truncated"] is True
                    heard = numbers(found)
                    assert heard == list(range(100 - len(heard), 100))
                    assert 20 <= len(heard) <= 27
        async with browser(notify) as found:
            answer = await found.subscribe({"deviceId": 42, "after": f"{now_ms() - service.KEPT_MS - 1}-0"})
            assert (answer["truncated"], len(found.heard)) == (True, 100)


async def test_ledger_answers_for_what_the_log_lost(redis: RedisClient, redis_url: str, tmp_path: Path) -> None:
    """When Redis has no more of it, the ledger has, with its rooms; both together are in order."""
    async with running_notify(redis_url, tmp_path, worker=True) as notify:
        for number in range(12):
            await announce(redis, [number], number % 2)
        await until_listed(notify, 12)
        await redis.xtrim(notification_log(1), maxlen=4, approximate=False)
        async with browser(notify) as found:
            assert (await found.subscribe({"deviceId": 42, "after": f"{now_ms() - 60_000}-0"}))["ok"]
            assert numbers(found) == [0, 2, 4, 6, 8, 10]


async def test_ledger_answers_when_redis_lost_all(redis: RedisClient, redis_url: str, tmp_path: Path) -> None:
    """Also when the service was started after that: what there is of the ledger is told, once, before what is new."""
    async with running_notify(redis_url, tmp_path, worker=True) as notify:
        for number in range(12):
            await announce(redis, [number], number % 5)
        await until_listed(notify, 12)
    await redis.flushall()
    set_caller(ANYBODY)  # who listed is not who starts the next one
    async with running_notify(redis_url, tmp_path) as notify, browser(notify) as found:
        after = f"{now_ms() - 60_000}-0"
        for subscription in ({"deviceId": 42}, {"deviceId": 42}, {"deviceId": 9}):
            assert (await found.subscribe({**subscription, "after": after}))["ok"]
        assert numbers(found) == [0, 4, 5, 9, 10, 1, 2, 6, 7, 11]
        await announce(redis, [12])
        await until(lambda: numbers(found)[-1] == 12, WITHIN_S)


async def until_listed(notify: Notify, count: int) -> None:
    async with asyncio.timeout(WITHIN_S):
        while len(await listed_ids(notify)) != count:  # noqa: ASYNC110 - another process knows
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("seed", range(6))
async def test_each_once_in_order_however_it_falls(
    redis: RedisClient, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Clients subscribe, again and again, with the last id they heard, while notifications go on: each hears each that
    is meant for it exactly once, in order, also when more comes during a replay than is held back."""
    chance = random.Random(seed)
    monkeypatch.setattr(client_module, "MOST_HELD", chance.choice((0, 3, 1_000)))
    monkeypatch.setattr(service, "_ENTRIES_AT_ONCE", chance.choice((3, 50)))
    kinds = [chance.randrange(5) for _ in range(1_500)]
    async with running_notify(redis_url, tmp_path) as notify:
        done = asyncio.Event()
        readers = [asyncio.create_task(_follow(notify, name, done, chance)) for name in SUBSCRIPTIONS]
        for start in range(0, len(kinds), 5):
            some = [announcement(number, kinds[number]) for number in range(start, start + 5)]
            await Announcer(redis).announce(some)
            await asyncio.sleep(chance.choice((0, 0.001, 0.005)))
        done.set()
        for name, heard in zip(SUBSCRIPTIONS, await asyncio.gather(*readers), strict=True):
            meant = [n for n, kind in enumerate(kinds) if kind in HEARD[name] | {EVERYBODY}]
            assert heard == meant, name


async def _follow(notify: Notify, name: str, done: asyncio.Event, chance: random.Random) -> list[int]:
    """A client that comes and goes; at its last visit it catches up with everything."""
    heard: list[int] = []
    last = "0-1"
    while True:
        is_last = done.is_set()
        async with browser(notify) as found:
            answer = await found.subscribe({**SUBSCRIPTIONS[name], "after": last})
            assert answer["ok"], answer
            if not is_last:
                await asyncio.sleep(chance.random() / 5)
        payloads = [payload for _, payload in found.heard]
        heard += [payload["number"] for payload in payloads]
        last = payloads[-1]["id"] if payloads else last
        if is_last:
            return heard


async def test_subscriptions_of_one_client_overlap_without_doubles(
    redis: RedisClient, redis_url: str, tmp_path: Path
) -> None:
    """Several subscriptions with the same last id tell each notification once, and so does the same one again."""
    for number in range(20):
        await announce(redis, [number], number % 5)
    async with running_notify(redis_url, tmp_path) as notify, browser(notify) as found:
        after = await place_of(redis, 3)
        for name in ("other", "alarms", "device", "organization", "alarms"):
            assert (await found.subscribe({**SUBSCRIPTIONS[name], "after": after}))["ok"]
        assert sorted(numbers(found)) == list(range(4, 20))
        await announce(redis, [20], 2)
        await until(lambda: numbers(found)[-1] == 20, WITHIN_S)
        assert len(found.heard) == 17


async def test_what_redis_said_while_nobody_listened_is_read_from_the_log(
    redis: RedisClient, redis_url: str, tmp_path: Path
) -> None:
    """A lost subscription costs a connected client nothing: what it would have missed comes late, once, in order."""
    async with running_notify(redis_url, tmp_path) as notify, browser(notify) as found:
        await found.subscribe({"deviceId": 42})
        for number in range(200):
            if number % 40 == 20:
                await redis.client_kill_filter(_type="pubsub")
            await announce(redis, [number])
        await found.hears(200)
        assert numbers(found) == list(range(200))


async def test_replay_that_cannot_be_read_is_refused(
    redis: RedisClient, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Redis there is no replay: the client is told, is in no room, and may ask again."""
    await announce(redis, range(3))
    async with running_notify(redis_url, tmp_path) as notify, browser(notify) as found:

        async def broken(*_: Any, **__: Any) -> Any:
            raise RedisError

        with monkeypatch.context() as patched:
            patched.setattr("redis.asyncio.Redis.xrevrange", broken)
            answer = await found.subscribe({"deviceId": 42, "after": "0-1"})
            assert (answer["ok"], answer["reason"]) == (False, "unavailable")
        await announce(redis, [3])
        answer = await found.subscribe({"deviceId": 42, "after": "0-1"})
        assert answer["ok"]
        assert numbers(found) == [0, 1, 2, 3]
