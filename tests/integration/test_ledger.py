"""The notification log and the ledger: announced once, numbered upwards, copied once, read by page."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aemos.v1 import notification_pb2, notification_pb2_grpc
from aemos.v1.job_pb2 import Announcement
from aemos_core import rpc
from aemos_core.announce import Announcer
from aemos_core.database import Database, migrate, open_database
from aemos_core.errors import AemosError
from aemos_core.identity import Caller, set_caller
from aemos_core.names import DEVICE_STATE_CHANGE, NOTIFICATION_LOGS, notification_log, notification_seen
from aemos_core.notification_log import BEGINNING, Logged, LogId, NotificationFeed, Published
from aemos_core.redis_link import RedisClient
from aemos_core.times import now_ms
from aemos_notify import jobs, service, store
from aemos_notify.jobs import RecordJob
from aemos_notify.service import forget_old

from tests.support.fake_registry import SECRET
from tests.support.notify import WITHIN_S, Notify, running, running_notify
from tests.support.notify_worker import dispatcher
from tests.support.redis_server import POLL_S, until

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def open_ledger(directory: Path) -> AsyncIterator[Database]:
    url = f"sqlite+aiosqlite:///{directory}/notify.db"
    await migrate(url, "aemos_notify")
    async with open_database(url) as database:
        yield database


def announcement(number: int, organization_id: int = 1, **changes: Any) -> Announcement:
    notification = {
        "type": "device-state-change",
        "deviceUuid": f"device-{number % 2}",
        "metadata": {"newValue": number},
        "timestamp": "2026-01-20T10:30:01.234Z",
    }
    parts = {"uuid": f"{organization_id}-{number}", "organization_id": organization_id, "event": "device-state-change"}
    return Announcement(**{**parts, "rooms": ["room"], "notification_json": json.dumps(notification), **changes})


async def logged(redis: RedisClient, organization_id: int = 1) -> list[tuple[str, bytes]]:
    entries: Any = await redis.xrange(notification_log(organization_id))
    return [(log_id.decode(), fields[b"n"]) for log_id, fields in entries]


@asynccontextmanager
async def published(redis: RedisClient) -> AsyncIterator[list[dict[str, Any]]]:
    """What is published within the block, complete after it."""
    messages: list[dict[str, Any]] = []
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(DEVICE_STATE_CHANGE)
        await pubsub.get_message(timeout=WITHIN_S)
        yield messages
        await redis.publish(DEVICE_STATE_CHANGE, "{}")
        while (found := await pubsub.get_message(timeout=WITHIN_S)) and found["data"] != b"{}":
            messages.append(json.loads(found["data"]))


async def test_announcing_twice_publishes_once(redis: RedisClient) -> None:
    """The same uuid is logged and published once, in one call, in the next one, and by another producer."""
    async with published(redis) as messages:
        await Announcer(redis).announce([announcement(1), announcement(1), announcement(2)])
        await Announcer(redis).announce([announcement(2), announcement(1), announcement(3)])
    assert [message["notification"]["metadata"]["newValue"] for message in messages] == [1, 2, 3]
    assert [message["notification"]["id"] for message in messages] == [log_id for log_id, _ in await logged(redis)]
    assert await redis.smembers(NOTIFICATION_LOGS) == {b"1"}


async def test_message_is_spelled_as_documented(redis: RedisClient) -> None:
    """The channel's JSON has the keys of origin.md in their order, ours behind, and the producer's text unchanged."""
    text = '{ "type": "device-state-change", "metadata": {"a": 1.10} }'
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(DEVICE_STATE_CHANGE)
        await pubsub.get_message(timeout=WITHIN_S)
        sampled = announcement(1, rooms=["device-uuid-a", "device-1"], notification_json=text, trace_context=b"\1" * 24)
        await Announcer(redis).announce([sampled, announcement(2, rooms=[], notification_json="{}")])
        raw = [(await pubsub.get_message(timeout=WITHIN_S))["data"].decode() for _ in range(2)]
    first, second = [log_id for log_id, _ in await logged(redis)]
    assert raw == [
        '{"type":"socket","event":"device-state-change","rooms":["device-uuid-a","device-1"],"organizationId":1,'
        f'"traceContext":"{"01" * 24}","notification":{{ "type": "device-state-change", "metadata": {{"a": 1.10}} '
        f',"traceId":"{"01" * 16}","id":"{first}"}}}}',
        '{"type":"socket","event":"device-state-change","broadcastAll":true,"organizationId":1,'
        f'"notification":{{"traceId":"","id":"{second}"}}}}',
    ]


async def test_ids_grow_when_the_clock_steps_back(redis: RedisClient) -> None:
    """Behind an entry of the future, ids go on growing."""
    future = 4_000_000_000_000
    await redis.xadd(notification_log(1), {"n": "{}"}, id=f"{future}-5")
    await Announcer(redis).announce([announcement(1), announcement(2)])
    assert [log_id for log_id, _ in await logged(redis)] == [f"{future}-5", f"{future}-6", f"{future}-7"]


async def test_log_keeps_a_day(redis: RedisClient) -> None:
    """Entries older than 24 hours make room, whole nodes of the stream at a time."""
    async with redis.pipeline(transaction=False) as pipe:
        for number in range(1_000):
            pipe.xadd(notification_log(1), {"n": "{}"}, id=f"{1_000 + number}-0")
        await pipe.execute()
    await Announcer(redis).announce([announcement(1)])
    assert len(await logged(redis)) <= 101


async def test_announcer_survives_what_it_meets(redis: RedisClient) -> None:
    """Redis without its scripts costs a repetition; what is no JSON object is left out and the rest goes."""
    announcer = Announcer(redis)
    await announcer.announce([])
    await announcer.announce([announcement(1)])
    await redis.script_flush()
    bad = [announcement(n, notification_json=text) for n, text in enumerate(["", "[]", '{"a":', "1"], start=10)]
    await announcer.announce([*bad, announcement(2)])
    assert len(await logged(redis)) == 2


async def forget_last(redis: RedisClient, kept: int) -> None:
    """As a Redis that was killed and had not written its last second: what came behind `kept` entries never was."""
    found: Any = await redis.xrange(notification_log(1))
    keys = [key async for key in redis.scan_iter(notification_seen("1-*"))]
    await redis.delete(notification_log(1), *keys)
    for number, (log_id, fields) in enumerate(found[:kept]):
        await redis.xadd(notification_log(1), fields, id=log_id)
        await redis.set(notification_seen(f"1-{number}"), "1")
    await redis.script_flush()


@pytest.mark.parametrize("again", [[7, 8, 9, 10], [10]], ids=["sent again", "something new"])
async def test_what_redis_lost_comes_back_as_it_was(redis: RedisClient, again: list[int]) -> None:
    """What was published keeps its id and its place, before anything newer: who heard it does not hear it again, and
    who did not does."""
    heard: list[Published] = []
    feed, announcer = NotificationFeed(redis, heard.append), Announcer(redis)
    async with running([feed]):
        await feed.position(1)
        await announcer.announce([announcement(number) for number in range(10)])
        before = await logged(redis)
        await forget_last(redis, 7)
        await announcer.announce([announcement(number) for number in again])
        after = await logged(redis)
        await until(lambda: str(heard[-1].id) == after[-1][0], WITHIN_S)
    assert after[:-1] == before
    assert [str(found.id) for found in heard] == [log_id for log_id, _ in after]


async def test_copying_twice_stores_once(redis: RedisClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies one after another and at the same time leave each entry once, in the log's order, over several pages."""
    monkeypatch.setattr(jobs, "_ENTRIES_AT_ONCE", 7)
    async with open_ledger(tmp_path) as ledger:
        copier = RecordJob(ledger, redis, dispatcher(ledger))
        for start in (0, 20, 21):
            await Announcer(redis).announce([announcement(n) for n in range(start, 40)])
            await asyncio.gather(*(copier.copy([1, 2]) for _ in range(3)))
        found = await entries(ledger)
        assert [str(entry.id) for entry in found] == [log_id for log_id, _ in await logged(redis)]
        assert len(found) == 40


async def test_old_entries_are_not_stored_again(tmp_path: Path) -> None:
    """What lies at or before the cursor is left out, whatever a copier brings."""
    async with open_ledger(tmp_path) as ledger:
        now = now_ms()
        one, two, three = (Logged(LogId(now, seq), "t", ("r",), "{}") for seq in (1, 2, 3))
        for batch in ([one, two], [one], [one, two, three], []):
            await dispatcher(ledger).record(1, batch)
        assert await entries(ledger) == [one, two, three]
        async with ledger.read() as connection:
            assert await store.reached(connection, 1) == LogId(now, 3)
            assert await store.reached(connection, 2) == BEGINNING


async def test_ledger_keeps_a_month(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is older goes, all of it, also when its organization says nothing any more."""
    monkeypatch.setattr(store, "_FORGOTTEN_AT_ONCE", 3)
    async with open_ledger(tmp_path) as ledger:
        month = service.KEPT_MS
        now = now_ms()
        new, old = (
            Logged(LogId(now - month + 60_000), "t", (), "{}"),
            [LogId(now - month - n) for n in range(10, 0, -1)],
        )
        for organization, some in ((1, [new]), (2, [Logged(place, "t", (), "{}") for place in old])):
            await dispatcher(ledger).record(organization, some)
        while await forget_old(ledger, now - month):
            pass
        assert await entries(ledger) == [new]
        assert await entries(ledger, 2) == []


async def test_strange_entries_do_not_stop_the_copy(redis: RedisClient, tmp_path: Path) -> None:
    """An entry that is no notification is kept as an empty object, and those behind it are copied."""
    strange: list[dict[Any, Any]] = [{"n": b"\xff"}, {"n": "[1]"}, {"other": "x"}]
    for fields in (*strange, {"n": '{"type": "t", "deviceUuid": "d"}'}):
        await redis.xadd(notification_log(1), fields)
    async with open_ledger(tmp_path) as ledger:
        await RecordJob(ledger, redis, dispatcher(ledger)).copy([1])
        body = '{"type": "t", "deviceUuid": "d"}'
        assert [(e.event, e.body) for e in await entries(ledger)] == [*[("", "{}")] * 3, ("t", body)]
        assert [e.body for e in await entries(ledger, device_uuid="d")] == [body]


async def entries(ledger: Database, organization_id: int = 1, device_uuid: str = "") -> Sequence[Logged]:
    async with ledger.read() as connection:
        return await store.entries(connection, organization_id, BEGINNING, 1_000, device_uuid=device_uuid)


async def listed(
    notify: Notify, organization_id: int = 1, **request: Any
) -> notification_pb2.ListNotificationsResponse:
    set_caller(Caller(organization_id, 7, "viewer", notify.registry.token(organization_id)))
    async with rpc.open_channel(notify.target, SECRET) as channel:
        stub = notification_pb2_grpc.NotifyServiceStub(channel)
        answer = await stub.ListNotifications(notification_pb2.ListNotificationsRequest(**request))
        assert isinstance(answer, notification_pb2.ListNotificationsResponse)
        return answer


async def until_listed(notify: Notify, count: int, organization_id: int = 1) -> list[notification_pb2.Notification]:
    async with asyncio.timeout(WITHIN_S):
        while len(found := (await listed(notify, organization_id)).notifications) != count:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
    return list(found)


async def test_notifications_reach_the_ledger(redis: RedisClient, redis_url: str, tmp_path: Path) -> None:
    """What was announced before the service started and while it runs is listed, inside its organization only."""
    await Announcer(redis).announce([announcement(1), announcement(1, organization_id=2)])
    async with running_notify(redis_url, tmp_path, worker=True) as notify:
        [first] = await until_listed(notify, 1)
        await Announcer(redis).announce([announcement(2, trace_context=b"\1" * 24)])
        found = await until_listed(notify, 2)
        assert [n.id for n in found] == [log_id for log_id, _ in await logged(redis)]
        assert first == found[0]
        assert (found[1].type, found[1].device_uuid) == ("device-state-change", "device-0")
        assert (found[1].trace_id, found[1].metadata["newValue"]) == ("01" * 16, 2)
        assert found[1].timestamp.ToJsonString() == "2026-01-20T10:30:01.234Z"
        assert len((await listed(notify, 2)).notifications) == 1
        assert len((await listed(notify, 3)).notifications) == 0


async def test_pages_follow_each_other(redis: RedisClient, redis_url: str, tmp_path: Path) -> None:
    """Pages are whole and in order, by device and from any id on; a wrong token is refused by its name."""
    await Announcer(redis).announce([announcement(n) for n in range(10)])
    ids = [log_id for log_id, _ in await logged(redis)]
    async with running_notify(redis_url, tmp_path, worker=True) as notify:
        await until_listed(notify, 10)
        pages, token = [], ""
        for _ in range(4):
            page = await listed(notify, page_size=3, page_token=token)
            token = page.next_page_token
            pages.append([n.id for n in page.notifications])
        assert token == ""
        assert pages == [ids[0:3], ids[3:6], ids[6:9], ids[9:10]]
        assert [n.id for n in (await listed(notify, after=ids[6])).notifications] == ids[7:]
        assert [n.id for n in (await listed(notify, device_uuid="device-1")).notifications] == ids[1::2]
        for request, loc in (
            ({"page_token": "x"}, "pageToken"),
            ({"after": "1-²"}, "after"),
            ({"page_size": -1}, "pageSize"),
        ):
            with pytest.raises(AemosError) as refused:
                await listed(notify, **request)
            assert refused.value.errors[0].loc == loc


@asynccontextmanager
async def caller_of(notify: Notify, role: str) -> AsyncIterator[notification_pb2_grpc.NotifyServiceStub]:
    set_caller(Caller(1, 7, role, notify.registry.token(role=role)))
    async with rpc.open_channel(notify.target, SECRET) as channel:
        yield notification_pb2_grpc.NotifyServiceStub(channel)


async def test_own_notifications_name_a_device_by_its_uuid(redis: RedisClient, redis_url: str, tmp_path: Path) -> None:
    """Its id would be taken for a uuid by whoever hears it."""
    async with running_notify(redis_url, tmp_path) as notify, caller_of(notify, "operator") as stub:
        await stub.PublishNotification(
            notification_pb2.PublishNotificationRequest(type="maintenance", device_uuid="abc-123")
        )
        with pytest.raises(AemosError, match="device not found"):
            await stub.PublishNotification(
                notification_pb2.PublishNotificationRequest(type="maintenance", device_uuid="42")
            )
    assert [json.loads(body)["deviceUuid"] for _, body in await logged(redis)] == ["abc-123"]


async def test_a_watch_ends_as_the_service_stops(redis: RedisClient, redis_url: str, tmp_path: Path) -> None:
    """In order, and at once: who watches goes on elsewhere, and nothing waits for the ten minutes to pass."""
    async with AsyncExitStack() as stack:
        async with running_notify(redis_url, tmp_path) as notify:
            stub = await stack.enter_async_context(caller_of(notify, "viewer"))
            metadata = (("authorization", f"Bearer {notify.registry.token()}"),)
            request = notification_pb2.WatchRequest(after="0-1", device_uuid="device-1")
            watch = aiter(stub.Watch(request, metadata=metadata))
            await Announcer(redis).announce([announcement(n) for n in range(2)])
            assert (await asyncio.wait_for(anext(watch), WITHIN_S)).device_uuid == "device-1"
            stopped_at = time.monotonic()
        assert time.monotonic() - stopped_at < WITHIN_S
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
