"""Socket.IO with real clients: who gets in, what they hear, and what becomes of those that misbehave."""

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from aemos.v1.job_pb2 import CommittedReading, ReadingBatch, ReadingSource
from aemos_core import telemetry
from aemos_core.announce import Announcer
from aemos_core.names import READINGS_COMMITTED
from aemos_core.process import PortInUse
from aemos_notify.wiring import wire

from tests.support.notify import (
    NOTIFICATION,
    ROOMS,
    WITHIN_S,
    Browser,
    announcement,
    bare,
    browser,
    enter,
    listeners,
    node_browser,
    running_notify,
    until_listeners,
)
from tests.support.redis_server import until

pytestmark = pytest.mark.asyncio


async def test_both_rooms_deliver_once_byte_for_byte(redis_url: str, tmp_path: Path) -> None:
    """A client in both rooms of a device hears a notification once, unchanged but for `traceId` and `id`."""
    async with running_notify(redis_url, tmp_path) as notify, bare(notify) as connection, browser(notify) as other:
        await enter(connection, notify)
        assert await other.subscribe({"deviceId": 42}) == {"ok": True, "rooms": ROOMS}
        options = {"auth": {"token": notify.registry.token()}, "transports": ["websocket"]}
        async with node_browser(notify, options, [{"deviceUuid": "abc-123"}]) as official:
            assert await official.says("connect") == [["connect", "websocket"]]
            assert await official.says("answer") == [["answer", {"ok": True, "rooms": ROOMS}]]
            await Announcer(notify.redis).announce([announcement("one"), announcement("two")])
            log: Any = await notify.redis.xrange("notification-log:1")
            ids = [log_id.decode() for log_id, _ in log][-2:]
            payloads = [f'{NOTIFICATION[:-1]},"traceId":"","id":"{i}"}}' for i in ids]
            events = [f'42["device-state-change",{payload}]' for payload in payloads]
            assert [await connection.recv(), await connection.recv()] == events
            objects = [json.loads(payload) for payload in payloads]
            assert await other.hears(2) == [("device-state-change", o) for o in objects]
            assert await official.says("event", 2) == [["event", "device-state-change", o] for o in objects]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.recv(), 0.2)


async def test_default_clients_are_told_what_to_set(redis_url: str, tmp_path: Path) -> None:
    """A client that begins with long polling gets an error that names the option."""
    async with (
        running_notify(redis_url, tmp_path) as notify,
        node_browser(notify, {"auth": {"token": notify.registry.token()}}) as official,
    ):
        [[_, _, text]] = await official.says("connect_error")
        assert 'transports: ["websocket"]' in json.loads(text)["message"]


async def test_foreign_device_is_not_found_and_silent(redis_url: str, tmp_path: Path) -> None:
    """A device of another organization does not exist, by uuid or id, and nothing of it is heard."""
    async with (
        running_notify(redis_url, tmp_path) as notify,
        browser(notify) as mine,
        browser(notify, notify.registry.token(2)) as theirs,
    ):
        assert (await theirs.subscribe({"deviceUuid": "foreign-7"}))["ok"]
        for wanted in ({"deviceUuid": "foreign-7"}, {"deviceId": 7}, {"deviceUuid": "7"}):
            assert await mine.subscribe(wanted) == {
                "ok": False,
                "reason": "not_found",
                "detail": "device not found",
            }
        assert (await mine.subscribe({"deviceId": 42}))["ok"]
        foreign = announcement("f1", organization_id=2, rooms=["device-uuid-foreign-7", "device-7"])
        await Announcer(notify.redis).announce([foreign, announcement("f2")])
        assert len(await theirs.hears(1)) == 1
        assert len(await mine.hears(1)) == 1
        assert mine.heard[0][1]["deviceUuid"] == "abc-123"


async def test_what_went_to_another_organization_is_silent(redis_url: str, tmp_path: Path) -> None:
    """Who listens to a device that its organization deletes hears nothing of the next one that has its uuid."""
    async with (
        running_notify(redis_url, tmp_path) as notify,
        browser(notify) as former,
        browser(notify) as each,
        browser(notify, notify.registry.token(2)) as owner,
    ):
        assert (await former.subscribe({"deviceUuid": "abc-123"}))["ok"]
        assert (await each.subscribe({"deviceUuid": "abc-123", "readings": "all"}))["ok"]
        notify.registry.devices = {**notify.registry.devices, "abc-123": (42, 2)}
        assert (await owner.subscribe({"deviceUuid": "abc-123"}))["ok"]
        for organization_id in (2, 1):
            told = {"notification_json": json.dumps({"of": organization_id}), "organization_id": organization_id}
            await Announcer(notify.redis).announce([announcement(f"w{organization_id}", **told)])
            committed = batch({"id": organization_id, "organization_id": organization_id})
            await notify.redis.publish(READINGS_COMMITTED, committed)
        for client, organization_id in ((owner, 2), (former, 1), (each, 1)):
            heard = [payload for _, payload in await client.hears(2)]
            assert {p.get("of", p.get("dataStreamId")) for p in heard} == {organization_id}
            assert len(heard) == 2


BAD_ARGUMENTS: list[tuple[Any, ...]] = [(), (None,), (3,), ("abc-123",), ([],), ({},), ({"deviceUuid": 42},)]
BAD_ARGUMENTS += [({"deviceUuid": "x" * 65},), ({"deviceUuid": "a\ud800"},), ({"deviceId": True},)]
BAD_ARGUMENTS += [({"deviceId": -1},), ({"deviceId": 2**70},), ({"alarms": 1},), ({"alarms": True, "deviceId": 42},)]
BAD_ARGUMENTS += [({"deviceId": 42, "after": a},) for a in ("", "x", 3, "1-", {})]
BAD_ARGUMENTS += [({"deviceId": 42, "readings": r},) for r in ("", "none", 3, [])]


async def test_malformed_arguments_are_answered(redis_url: str, tmp_path: Path) -> None:
    """Whatever a client sends as argument, the acknowledgement says what is wrong with it."""
    async with running_notify(redis_url, tmp_path) as notify, browser(notify) as client:
        for arguments in BAD_ARGUMENTS:
            for event in ("subscribe", "unsubscribe"):
                answer = await client.subscribe(*arguments, event=event)
                assert (answer["ok"], answer["reason"]) == (False, "invalid"), arguments
        assert (await client.subscribe({}, event="publish"))["reason"] == "unknown_event"


async def test_rooms_are_limited(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client is in so many rooms at the most; what it has stays."""
    monkeypatch.setattr("aemos_notify.socketio_edge.ROOMS_PER_CLIENT", 3)
    async with running_notify(redis_url, tmp_path) as notify, browser(notify) as client:
        assert (await client.subscribe({"deviceId": 42}))["ok"]
        assert (await client.subscribe({"deviceId": 9}))["reason"] == "too_many_rooms"
        assert (await client.subscribe({"deviceId": 42}, event="unsubscribe")) == {"ok": True, "rooms": ROOMS}
        assert (await client.subscribe({"deviceId": 42}, event="unsubscribe"))["reason"] == "not_found"
        assert (await client.subscribe({"deviceId": 9}))["ok"]
        await Announcer(notify.redis).announce([announcement("r1"), announcement("r2", rooms=["device-9"])])
        assert len(await client.hears(1)) == 1


async def test_broadcast_stays_in_the_organization(redis_url: str, tmp_path: Path) -> None:
    """Without rooms a notification reaches every client of its organization and nobody else."""
    async with (
        running_notify(redis_url, tmp_path) as notify,
        browser(notify) as one,
        browser(notify) as two,
        browser(notify, notify.registry.token(2)) as foreign,
    ):
        await Announcer(notify.redis).announce([announcement("b1", rooms=[])])
        await Announcer(notify.redis).announce(
            [announcement("b2", rooms=[], organization_id=2, notification_json="{}")]
        )
        assert len(await one.hears(1)) == len(await two.hears(1)) == len(await foreign.hears(1)) == 1
        assert one.heard == two.heard != foreign.heard


def batch(*readings: Mapping[str, Any]) -> bytes:
    """Readings of 25.5 °C, but for these fields of theirs and of their variables."""
    made = ReadingBatch()
    of = {"device_id": 42, "device_uuid": "abc-123", "sensor_uuid": "s-1", "variable_name": "temperature"}
    value = {"number": 25.5, "text": "25.5", "variable_type": "number", "received_at_ms": 1_768_905_000_000}
    for changes in readings:
        fields: dict[str, Any] = {"id": 9876, **of, **value, **changes}
        for message, group in ((CommittedReading, made.readings), (ReadingSource, made.sources)):
            group.add(**{name: fields[name] for name in message.DESCRIPTOR.fields_by_name if name in fields})
    return made.SerializeToString()


async def test_live_readings_reach_the_room(redis_url: str, tmp_path: Path) -> None:
    """`data-stream` carries each reading of a subscribed device, with its value as the type its variable has."""
    committed = batch(
        {"trace_context": b"t" * 24},
        {"id": 2, "telemetry_data_id": 2, "variable_type": "text", "text": "25.5"},
        {"id": 3, "telemetry_data_id": 3, "variable_type": "boolean", "text": "true"},
        {"id": 4, "telemetry_data_id": 4, "device_id": 9, "device_uuid": "other-9"},
        {"id": 5},
    )
    async with running_notify(redis_url, tmp_path) as notify, browser(notify) as client:
        await client.subscribe({"deviceUuid": "abc-123", "readings": "all"})
        await notify.redis.publish(READINGS_COMMITTED, committed)
        heard = [payload for event, payload in await client.hears(4) if event == "data-stream"]
        assert [(p["dataStreamId"], p["value"]) for p in heard] == [(9876, 25.5), (2, "25.5"), (3, True), (5, 25.5)]
        assert heard[0].pop("timestamp")
        assert heard[0] == {
            "deviceUuid": "abc-123",
            "deviceId": 42,
            "sensorUuid": "s-1",
            "variableName": "temperature",
            "value": 25.5,
            "dataStreamId": 9876,
            "recievedAt": "2026-01-20T10:30:00.000Z",
            "merged": 0,
            "traceId": (b"t" * 16).hex(),
        }


async def test_bursts_are_coalesced(redis_url: str, tmp_path: Path) -> None:
    """The first reading arrives at once; of what follows within a tenth of a second, the newest of each variable, with
    the count of those it stands for; a late one does not hide a newer one; nothing is lost from the count."""
    same, begin = {"sensor_uuid": "s-abc-123"}, 1_768_905_000_000
    burst = [{"id": n, "telemetry_data_id": 1 + n % 2, "received_at_ms": begin + n, **same} for n in range(2, 12)]
    late = {"id": 12, "telemetry_data_id": 1, "received_at_ms": 5, **same}
    async with running_notify(redis_url, tmp_path) as notify, browser(notify) as client, browser(notify) as each:
        await client.subscribe({"deviceUuid": "abc-123"})
        await client.subscribe({"sensorUuid": "s-abc-123"})
        await each.subscribe({"sensorUuid": "s-abc-123", "readings": "all"})
        await notify.redis.publish(READINGS_COMMITTED, batch({"id": 1, "telemetry_data_id": 1, **same}))
        await client.hears(1)
        for one in (*burst, late):
            await notify.redis.publish(READINGS_COMMITTED, batch(one))
        await each.hears(12)
        await until(lambda: sum(p["merged"] + 1 for _, p in client.heard) == 12, WITHIN_S)
        assert client.heard[0][1]["dataStreamId"] == 1
        assert len(client.heard) < 12
        assert {p["dataStreamId"] for _, p in client.heard[-2:]} == {10, 11}
        assert [p["dataStreamId"] for _, p in each.heard] == list(range(1, 13))
        # changed to all of them, and back
        await client.subscribe({"deviceUuid": "abc-123", "readings": "all"})
        before = len(client.heard)
        await notify.redis.publish(READINGS_COMMITTED, batch(*burst))
        await client.hears(before + 10)
        assert all(p["merged"] == 0 for _, p in client.heard[before:])


SUBJECTS: list[tuple[dict[str, Any], list[str]]] = [
    ({"deviceUuid": "abc-123"}, ROOMS),
    ({"sensorUuid": "s-abc-123"}, ["sensor-uuid-s-abc-123"]),
    ({"organizationId": 1}, ["organization-1"]),
    ({"alarms": True}, ["alarms-1"]),
    ({"ruleChainId": 42}, ["rule-chain-42"]),
]
FOREIGN: list[dict[str, Any]] = [{"sensorUuid": "s-foreign-7"}, {"organizationId": 2}, {"ruleChainId": 7}]


async def test_every_subject_is_heard_while_it_is_subscribed(redis_url: str, tmp_path: Path) -> None:
    """Each kind of subscription has its rooms, is heard once, and is silent when it is taken back."""
    async with running_notify(redis_url, tmp_path) as notify:
        for number, (subject, rooms) in enumerate(SUBJECTS):
            async with browser(notify) as client:
                for event in ("subscribe", "subscribe", "unsubscribe"):
                    assert await client.subscribe(subject, event=event) == {"ok": True, "rooms": rooms}
                    heard = len(client.heard)
                    await Announcer(notify.redis).announce([announcement(f"s{number}-{time.time()}", rooms=rooms)])
                    await Announcer(notify.redis).announce([announcement(f"e{number}-{time.time()}", rooms=[])])
                    await client.hears(heard + (2 if event == "subscribe" else 1))
                    await asyncio.sleep(0)
                assert len(client.heard) == 5
                assert (await client.subscribe(subject, event="unsubscribe"))["reason"] == "not_found"
        async with browser(notify) as client:
            for subject in FOREIGN:
                assert (await client.subscribe(subject))["reason"] == "not_found"


async def test_nobody_there_costs_nothing(redis_url: str, tmp_path: Path) -> None:
    """notify listens to stored readings exactly while a client is in a device's room, and before it says so."""

    async with running_notify(redis_url, tmp_path) as notify:
        for _ in range(3):
            async with browser(notify) as client:
                assert await listeners(notify.redis, READINGS_COMMITTED) == 0
                await client.subscribe({"deviceId": 42})
                assert await listeners(notify.redis, READINGS_COMMITTED) == 1
                await client.subscribe({"deviceId": 42}, event="unsubscribe")
                await until_listeners(notify.redis, READINGS_COMMITTED, 0)
                await client.subscribe({"deviceId": 9})
                assert await listeners(notify.redis, READINGS_COMMITTED) == 1
            await until_listeners(notify.redis, READINGS_COMMITTED, 0)


async def test_emit_continues_the_trace(redis_url: str, tmp_path: Path) -> None:
    """A sampled notification's emit is a span under the context it carries, and `traceId` names its trace."""
    async with running_notify(redis_url, tmp_path, trace_dir=str(tmp_path / "spans")) as notify:
        with telemetry.exporting("notify", notify.settings):
            async with browser(notify) as client:
                await client.subscribe({"deviceId": 42})
                await Announcer(notify.redis).announce([announcement("t1", trace_context=b"\x07" * 24)])
                [(_, payload)] = await client.hears(1)
    spans = "".join(path.read_text() for path in (tmp_path / "spans").iterdir())
    assert payload["traceId"] == "07" * 16
    assert telemetry.SPAN_EMIT in spans
    assert "07" * 16 in spans


async def test_taken_port_is_named(redis_url: str, tmp_path: Path) -> None:
    """A port that another process holds stops the start with the name of the variable that moves it."""
    async with running_notify(redis_url, tmp_path) as notify:
        with pytest.raises(PortInUse, match=r"AEMOS_SOCKETIO_PORT"):
            async with wire(notify.settings):
                pass


async def test_stop_closes_every_client(redis_url: str, tmp_path: Path) -> None:
    """When the service stops, its clients are told at once, so that they go to another replica."""
    client = Browser()
    async with running_notify(redis_url, tmp_path) as notify:
        await client.client.connect(notify.url, auth={"token": notify.registry.token()}, transports=["websocket"])
    await until(lambda: client.left, WITHIN_S)
