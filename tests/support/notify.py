"""The notify service in this process, and clients of it: python-socketio's, the official one, and a bare WebSocket."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import socketio
import websockets
from aemos.v1 import notification_pb2, notification_pb2_grpc
from aemos.v1.job_pb2 import Announcement
from aemos_core import rpc
from aemos_core.database import migrate
from aemos_core.identity import Caller, set_caller
from aemos_core.names import DEVICE_STATE_CHANGE
from aemos_core.process import Component
from aemos_core.redis_link import RedisClient, open_redis
from aemos_notify.settings import NotifySettings
from aemos_notify.wiring import wire, wire_worker
from websockets.asyncio.client import ClientConnection

from tests.support.fake_registry import SECRET, FakeRegistry, fake_registry
from tests.support.infra import NODE
from tests.support.ports import free_port
from tests.support.redis_server import POLL_S, until

DEVICES = {"abc-123": (42, 1), "other-9": (9, 1), "foreign-7": (7, 2)}
WITHIN_S = 5.0
ROOMS = ["device-uuid-abc-123", "device-42"]
# Spaces, an escape and a large number: what a decoder and an encoder on the way would change.
NOTIFICATION = (
    '{"type": "device-state-change", "deviceUuid": "abc-123",  "metadata": {"stateName": "temperatureAlert",'
    ' "newValue": "warn\\u0069ng", "oldValue": 1.10}, "timestamp": "2026-01-20T10:30:01.234Z"}'
)


class Notify:
    """A running service."""

    def __init__(self, settings: NotifySettings, registry: FakeRegistry, redis: RedisClient) -> None:
        self.settings = settings
        self.registry = registry
        self.redis = redis
        self.url = f"http://127.0.0.1:{settings.socketio_port}"
        self.target = f"127.0.0.1:{settings.notify_grpc_port}"


@asynccontextmanager
async def running(components: Sequence[Component]) -> AsyncIterator[None]:
    """Components that run until the end of the block."""
    stop = asyncio.Event()
    tasks = [asyncio.create_task(component.run(stop)) for component in components]
    try:
        yield
    finally:
        stop.set()
        for task in tasks:
            await asyncio.wait_for(task, 30)


@asynccontextmanager
async def running_notify(
    redis_url: str, directory: Path, *, worker: bool = False, **changes: Any
) -> AsyncIterator[Notify]:
    """The service with a fake registry, its worker if wanted, and a database under `directory`."""
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(fake_registry(DEVICES))
        usual = {
            "database_url": f"sqlite+aiosqlite:///{directory}/{{service}}.db",
            "redis_url": redis_url,
            "service_secret": SECRET,
            "ingest_target": registry.target,
            "rules_target": registry.target,
            "socketio_port": free_port(),
            "notify_grpc_port": free_port(),
            "notify_worker_threads": 2,
        }
        settings = NotifySettings(**{**usual, **changes})
        await migrate(settings.database_of("notify"), "aemos_notify")
        redis = await stack.enter_async_context(open_redis(redis_url))
        for wired in (wire(settings), wire_worker(settings)) if worker else (wire(settings),):
            await stack.enter_async_context(running(await stack.enter_async_context(wired)))
        notify = Notify(settings, registry, redis)
        await until_listeners(redis, DEVICE_STATE_CHANGE, 1)
        yield notify


async def until_listeners(redis: RedisClient, channel: str, count: int) -> None:
    """Waits until so many listen to a channel."""
    async with asyncio.timeout(WITHIN_S):
        while await listeners(redis, channel) != count:  # noqa: ASYNC110 - another process knows
            await asyncio.sleep(POLL_S)


async def listeners(redis: RedisClient, channel: str) -> int:
    """How many listen to a channel."""
    return int((await redis.pubsub_numsub(channel))[0][1])


async def listed_ids(notify: Notify) -> list[str]:
    """Ids of the ledger's notifications of organization 1."""
    set_caller(Caller(1, 7, "viewer", notify.registry.token()))
    async with rpc.open_channel(notify.target, SECRET) as channel:
        stub = notification_pb2_grpc.NotifyServiceStub(channel)
        answer = await stub.ListNotifications(notification_pb2.ListNotificationsRequest(page_size=1000))
    return [found.id for found in answer.notifications]


class Browser:
    """python-socketio's client, keeping what it hears as `(event, payload)`."""

    def __init__(self) -> None:
        self.client = socketio.AsyncClient(reconnection=False)
        self.heard: list[tuple[str, Any]] = []
        self.left = False
        self.client.on("*", self._hear)
        self.client.on("disconnect", self._leave)

    def _hear(self, event: str, payload: Any) -> None:
        self.heard.append((event, payload))

    def _leave(self, reason: str) -> None:
        self.left = True

    async def subscribe(self, *arguments: Any, event: str = "subscribe") -> Any:
        """The acknowledgement."""
        return await self.client.call(event, *arguments, timeout=WITHIN_S)

    async def hears(self, count: int) -> list[tuple[str, Any]]:
        """Waits until it heard so many events."""
        await until(lambda: len(self.heard) >= count, WITHIN_S, f"{count} events, heard {self.heard}")
        return self.heard


@asynccontextmanager
async def browser(notify: Notify, token: str | None = None) -> AsyncIterator[Browser]:
    """A connected browser of organization 1, unless the token says another."""
    found = Browser()
    auth = {"token": notify.registry.token() if token is None else token}
    await found.client.connect(notify.url, auth=auth, transports=["websocket"], wait_timeout=WITHIN_S)
    try:
        yield found
    finally:
        await found.client.disconnect()


class NodeBrowser:
    """The official client in a process of its own, keeping the lines it prints."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.lines: list[list[Any]] = []
        self._reading = asyncio.create_task(self._read(process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self.lines.append(json.loads(line))

    async def says(self, word: str, count: int = 1) -> list[list[Any]]:
        """Waits for so many lines that begin with a word."""

        def found() -> list[list[Any]]:
            return [line for line in self.lines if line[0] == word]

        await until(lambda: len(found()) >= count, 2 * WITHIN_S, f"{count} {word} in {self.lines}")
        return found()


@asynccontextmanager
async def node_browser(
    notify: Notify, options: dict[str, Any], subscriptions: Sequence[dict[str, Any]] = ()
) -> AsyncIterator[NodeBrowser]:
    """The official client with `options`, subscribing as it connects."""
    arguments = ["node", "listen.js", notify.url, json.dumps(options), json.dumps(list(subscriptions))]
    process = await asyncio.create_subprocess_exec(
        *arguments, cwd=NODE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield NodeBrowser(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def announcement(uuid: str, **changes: Any) -> Announcement:
    """A notification of device 42 of organization 1."""
    parts = {"uuid": uuid, "organization_id": 1, "event": "device-state-change", "rooms": ROOMS}
    return Announcement(**{**parts, "notification_json": NOTIFICATION, **changes})


@asynccontextmanager
async def bare(notify: Notify, **options: Any) -> AsyncIterator[ClientConnection]:
    """A WebSocket that speaks Socket.IO by hand; Engine.IO's OPEN is read."""
    url = notify.url.replace("http", "ws") + "/socket.io/?EIO=4&transport=websocket"
    async with websockets.connect(url, compression=None, close_timeout=1, **options) as connection:
        await connection.recv()
        yield connection


async def enter(connection: ClientConnection, notify: Notify, subscription: str = '{"deviceUuid":"abc-123"}') -> None:
    """CONNECT and subscribe, by hand."""
    await connection.send("40" + json.dumps({"token": notify.registry.token()}))
    assert str(await connection.recv()).startswith('40{"sid"')
    await connection.send(f'420["subscribe",{subscription}]')
    assert str(await connection.recv()).startswith('430[{"ok":true')


async def closed(connection: ClientConnection) -> int:
    """Reads to the end; how many messages there were."""
    count = 0
    async with asyncio.timeout(WITHIN_S):
        try:
            while True:
                await connection.recv()
                count += 1
        except websockets.ConnectionClosed:
            return count
