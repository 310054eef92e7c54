"""Socket.IO clients that misbehave: each is dealt with alone, and the others notice nothing."""

import asyncio
import json
import logging
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import websockets
from aemos_core import http_heads
from aemos_core.announce import Announcer
from aemos_core.names import DEVICE_STATE_CHANGE
from aemos_notify import replay, service, websocket, wiring
from aemos_notify.rooms import Rooms
from aemos_notify.websocket import QUEUED_PACKETS
from websockets.asyncio.client import ClientConnection

from tests.support.notify import ROOMS, WITHIN_S, announcement, bare, browser, closed, enter, running_notify
from tests.support.redis_server import until

pytestmark = pytest.mark.asyncio


async def test_slow_client_is_dropped_alone(redis_url: str, tmp_path: Path) -> None:
    """A client that never reads loses its connection when its queue is full; another hears everything, in order."""
    count, padding = 2_000, "x" * 8_000
    with socket.socket() as narrow:
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with running_notify(redis_url, tmp_path) as notify, browser(notify) as good:
            narrow.connect(("127.0.0.1", notify.settings.socketio_port))
            async with bare(notify, sock=narrow, max_queue=1, ping_interval=None) as slow:
                await enter(slow, notify)
                await good.subscribe({"deviceId": 42})
                for i in range(count):
                    notification = {"i": i, "padding": padding}
                    message = {"event": "flood", "rooms": ROOMS, "notification": notification}
                    await notify.redis.publish(DEVICE_STATE_CHANGE, json.dumps(message))
                assert [payload["i"] for _, payload in await good.hears(count)] == list(range(count))
                assert await closed(slow) < count


async def test_client_that_falls_behind_hears_all_in_order(redis_url: str, tmp_path: Path) -> None:
    """What a client does not read for a while waits for it; frames written past the queue never overtake it."""
    count, padding = 800, "x" * 8_000
    with socket.socket() as narrow:
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with running_notify(redis_url, tmp_path) as notify:
            narrow.connect(("127.0.0.1", notify.settings.socketio_port))
            async with bare(notify, sock=narrow, max_queue=1, ping_interval=None) as late:
                await enter(late, notify)
                reading = asyncio.create_task(_numbers(late, 2 * count, after=1.0))
                for i in range(2 * count):
                    message = {"event": "e", "rooms": ROOMS, "notification": {"i": i, "padding": padding}}
                    await notify.redis.publish(DEVICE_STATE_CHANGE, json.dumps(message))
                    if i >= count:
                        await asyncio.sleep(0.002)
                assert await asyncio.wait_for(reading, 20) == list(range(2 * count))


async def _numbers(connection: ClientConnection, count: int, after: float) -> list[int]:
    await asyncio.sleep(after)
    return [json.loads(str(await connection.recv())[2:])[1]["i"] for _ in range(count)]


async def test_flood_is_closed(redis_url: str, tmp_path: Path) -> None:
    """10,000 events at once, and one of 2 MB, end the connection of whoever sent them and nobody else's."""
    async with running_notify(redis_url, tmp_path) as notify, browser(notify) as good:
        floods: list[list[str]] = [['42["subscribe"]'] * 10_000, ['42["' + "x" * 2_000_000 + '"]']]
        for flood in floods:
            async with bare(notify) as bad:
                await bad.send("40" + json.dumps({"token": notify.registry.token()}))
                with suppress(websockets.ConnectionClosed):
                    for message in flood:
                        await bad.send(message)
                await closed(bad)
        assert (await good.subscribe({"deviceId": 42}))["ok"]


BAD_PACKETS: list[str | bytes] = [
    "x",
    "",
    b"binary",
    b"\xff",
    "4",
    "2probe",
    "5",
    "42",
    "42[]",
    "42{",
    "42[1]",
    "42" + "[" * 60_000,
]
BAD_PACKETS += ['451-["subscribe",{"_placeholder":true,"num":0}]', '42["disconnect","x"]', "4[[", "43", "420x"]
BAD_PACKETS += ['42["connect",{"asgi.scope":{}},{"token":"x"}]', "42" + "9" * 200 + "[1]", "3[[["]


async def test_malformed_packets_are_closed(redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A packet that is none ends its connection, without a traceback, with or without a session; others stay."""
    async with running_notify(redis_url, tmp_path) as notify, browser(notify) as good:
        await good.subscribe({"deviceId": 42})
        for packet in BAD_PACKETS:
            for with_session in (True, False):
                if with_session is False and packet == '42["disconnect","x"]':
                    continue
                async with bare(notify) as bad:
                    if with_session:
                        await enter(bad, notify)
                    await bad.send(packet)
                    await closed(bad)
        await Announcer(notify.redis).announce([announcement("m1")])
        assert len(await good.hears(1)) == 1
        assert not good.left
    assert [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR] == []


async def test_silence_is_closed(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends half a request, or connects and proves nothing, is gone after its time; a session stays."""
    monkeypatch.setattr(websocket, "SESSION_SECONDS", 0.3)
    monkeypatch.setattr(http_heads, "HEAD_SECONDS", 0.3)
    async with running_notify(redis_url, tmp_path) as notify, browser(notify) as good:
        async with bare(notify) as silent, bare(notify) as refused:
            await refused.send('40{"token":"x"}')
            assert await closed(silent) == 0
            assert await closed(refused) == 1
        reader, writer = await asyncio.open_connection("127.0.0.1", notify.settings.socketio_port)
        writer.write(b"GET /socket.io/ HTTP/1.1\r\nHost:")
        assert (await asyncio.wait_for(reader.read(), WITHIN_S)).startswith(b"HTTP/1.1 408 ")
        writer.close()
        assert (await good.subscribe({"deviceId": 42}))["ok"]


async def test_full_house_is_answered(redis_url: str, tmp_path: Path) -> None:
    """One client more than allowed is answered 503."""
    async with running_notify(redis_url, tmp_path, socketio_clients=1) as notify, browser(notify):
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with bare(notify):
                pass
        assert refused.value.response.status_code == 503


async def test_who_left_while_it_waited_for_a_replay_is_in_no_room(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session ended before its turn came: nothing of it stays."""
    rooms, may_read, read = Rooms(), asyncio.Event(), service.entries

    async def entries(*arguments: Any, **named: Any) -> Any:
        await may_read.wait()
        return await read(*arguments, **named)

    monkeypatch.setattr(replay, "_AT_ONCE", 1)
    monkeypatch.setattr(wiring, "Rooms", lambda: rooms)
    monkeypatch.setattr(service, "entries", entries)
    wanted = {"deviceId": 42, "after": "0-1"}
    async with running_notify(redis_url, tmp_path) as notify:
        await Announcer(notify.redis).announce([announcement("l1")])
        async with (
            browser(notify) as first,
            browser(notify, notify.registry.token(exp=time.time() + 1.5)) as second,
            browser(notify) as third,
        ):
            answers = []
            for client in (first, second, third):
                answers.append(asyncio.create_task(client.subscribe(wanted)))
                await until(lambda: len(rooms.members("device-42")) == 1, WITHIN_S)
            await until(lambda: second.left, WITHIN_S)
            may_read.set()
            assert [(await answers[number])["ok"] for number in (0, 2)] == [True, True]
            answers[1].cancel()
        await until(lambda: rooms.empty, WITHIN_S, "everybody to be gone")


async def test_a_replay_waits_for_its_client_and_no_longer(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times what a queue holds is replayed to a client as it reads; one that reads nothing gives its turn back."""
    monkeypatch.setattr(replay, "REPLAY_SECONDS", 3.0)
    monkeypatch.setattr(replay, "_AT_ONCE", 1)
    padding, count = "x" * 2_000, 5 * QUEUED_PACKETS
    async with running_notify(redis_url, tmp_path) as notify, browser(notify) as good:
        await notify.redis.flushdb()
        for start in range(0, count, 500):
            numbers = range(start, start + 500)
            text = [json.dumps({"number": number, "padding": padding}) for number in numbers]
            some = [announcement(f"w{n}", notification_json=t) for n, t in zip(numbers, text, strict=True)]
            await Announcer(notify.redis).announce(some)
        with socket.socket() as narrow:
            narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            narrow.connect(("127.0.0.1", notify.settings.socketio_port))
            async with bare(notify, sock=narrow, max_queue=1, ping_interval=None) as silent:
                await silent.send("40" + json.dumps({"token": notify.registry.token()}))
                await silent.recv()
                await silent.send('420["subscribe",{"deviceId":42,"after":"0-1"}]')
                last = "0-1"
                while not (answer := await good.subscribe({"deviceId": 42, "after": last}))["ok"]:
                    assert answer["reason"] == "unavailable"
                    last = good.heard[-1][1]["id"] if good.heard else last
                assert [payload["number"] for _, payload in await good.hears(count)] == list(range(count))
