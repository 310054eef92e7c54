"""MQTT 3.1.1 for devices: readings come in and are acknowledged when they are durable, notifications go out."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from aemos_core.errors import AemosError
from aemos_core.notification_log import NotificationFeed
from aemos_core.process import PortInUse
from aemos_core.waiting import wait
from amqtt.mqtt.connack import ConnackPacket
from redis.exceptions import RedisError

from aemos_gateway.device_auth import DeviceAuth
from aemos_gateway.downlink import Downlink
from aemos_gateway.mqtt_admission import Proven, Refusal, prove
from aemos_gateway.mqtt_backlog import Backlog, ReadLog
from aemos_gateway.mqtt_connection import Connection
from aemos_gateway.mqtt_device import DeviceLink, Ports
from aemos_gateway.mqtt_frames import ProtocolError
from aemos_gateway.mqtt_received import Received
from aemos_gateway.mqtt_sessions import Kept, Sessions
from aemos_gateway.service import Uplink
from aemos_gateway.token_holders import TokenHolders

log = logging.getLogger("aemos.gateway.mqtt")

PORT_VARIABLE = "AEMOS_MQTT_PORT"
_BACKLOG = 1024
_RECHECK_S = 1.0
_REFRESH_S = 600.0
"""A session that is kept is saved so often, however silent it is."""
_SAVE_S = 3.0
_AT_ONCE = 32
"""Connections let in at the same time: a storm of them leaves the others their turn."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process bears with."""

    connections: int = 10_000
    """Beyond them a new one is closed at once."""
    connect_s: float = 10.0
    """From the first byte of TCP to the CONNACK."""
    resend_s: float = 30.0
    """See Ports.resend_s."""
    drain_s: float = 15.0
    """At the end, how long acknowledgements are waited for."""


@dataclass(slots=True)
class _Visit:
    """What is known of a connection, growing as it gets further."""

    task: asyncio.Task[None]
    proven: Proven | None = None
    link: DeviceLink | None = None
    is_cut_short: bool = False
    """Its session is to be kept, and could not be read: it ends when that is possible again."""


class MqttEdge:
    """A component: the MQTT connections of this process."""

    def __init__(self, auth: DeviceAuth, ports: Ports, limits: Limits) -> None:
        self._auth = auth
        self._holders = TokenHolders(auth)
        self._ports = ports
        self._limits = limits
        self._visits: dict[Connection, _Visit] = {}
        self._by_session: dict[str, Connection] = {}
        self._received: dict[str, Received] = {}
        """Of sessions that are to be kept, the one that came last at the end."""
        self._admissions = asyncio.Semaphore(_AT_ONCE)
        self._server: asyncio.Server

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def connections(self) -> list[Connection]:
        """Everybody who is here, known or not yet."""
        return list(self._visits)

    async def listen(self, host: str, port: int) -> None:
        """Accepts connections from now on; PortInUse."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: Connection(self._made), host, port, backlog=_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(port, PORT_VARIABLE) from None
            raise

    async def run(self, stop: asyncio.Event) -> None:
        """Ends connections whose token was revoked; at the end answers what was taken, then closes."""
        refresh_at = time.monotonic() + _REFRESH_S
        while not await wait(stop, _RECHECK_S):
            await self._holders.check()
            await self._end_what_was_cut_short()
            if time.monotonic() > refresh_at:
                refresh_at += _REFRESH_S
                self._refresh()
        self._server.close()
        for connection, visit in list(self._visits.items()):
            if visit.link is not None:
                visit.link.leave()
            else:
                connection.end("")
        await self._all_gone()
        await self._ports.sessions.drain(_SAVE_S)

    async def close(self) -> None:
        """Cuts off whatever is left."""
        self._server.close()
        for connection in self.connections:
            connection.cut_off("this process stops")
        await self._all_gone()
        await self._ports.backlog.close()
        await self._ports.sessions.close()

    def disconnect(self, device_uuid: str) -> int:
        """Closes every connection of a device, whether it listens or not; how many there were."""
        found = [c for c, v in self._visits.items() if v.proven and v.proven.device.device_uuid == device_uuid]
        for connection in found:
            connection.end("an operator asked for it")
        return len(found)

    def taken(self, message: bytes) -> None:
        """Another gateway says which session came to it: a connection of it here is over."""
        connection = self._by_session.get(self._ports.sessions.taken_elsewhere(message))
        if connection is not None:
            if (link := self._visits[connection].link) is not None:
                link.keeping = False
            connection.cut_off("the same device and client id connected to another gateway")

    # The way in.

    def _made(self, connection: Connection) -> None:
        if len(self._visits) >= self._limits.connections:
            connection.cut_off("too many connections")
            return
        self._visits[connection] = _Visit(asyncio.get_running_loop().create_task(self._serve(connection)))

    async def _serve(self, connection: Connection) -> None:
        try:
            if (proven := await self._admit(connection)) is not None:
                with self._holders.holding(proven.token, partial(connection.end, "its token was revoked")):
                    await self._enter(connection, proven)
                    await connection.ended
        except Exception:
            log.exception("mqtt %s: cut off", connection.peer)
        finally:
            connection.end("")
            await connection.ended
            self._forget(connection, self._visits.pop(connection).proven)

    def _forget(self, connection: Connection, proven: Proven | None) -> None:
        if proven is None:
            return
        self._ports.uplink.presence.went(proven.device.device_id)
        if self._by_session.get(proven.session_key) is connection:
            del self._by_session[proven.session_key]

    async def _admit(self, connection: Connection) -> Proven | None:
        """Whose the connection is, when it proved it; the old one of its session is gone then."""
        try:
            async with asyncio.timeout(self._limits.connect_s):
                body = await connection.connect_packet()
                async with self._admissions:
                    proven = await prove(body, self._auth)
                    await asyncio.sleep(0)  # a storm of them leaves the others their turn
                    await self._take_over(connection, proven)
                    return proven
        except Refusal as refusal:
            connection.write(ConnackPacket.build(0, refusal.code).to_bytes())
            reason = f"CONNACK {refusal.code}: {refusal}"
        except ProtocolError as error:
            reason = str(error)
        except TimeoutError:
            reason = "no CONNECT in time"
        connection.end(reason)
        return None

    async def _take_over(self, connection: Connection, proven: Proven) -> None:
        """Takes the session over (MQTT 3.1.1, 3.1.4): its connection is this one, and another one ends."""
        key = proven.session_key
        old = self._by_session.get(key)
        self._by_session[key] = connection
        self._visits[connection].proven = proven
        self._ports.sessions.take(key)
        self._ports.uplink.presence.came(proven.device.device_id)
        if old is not None:
            old.cut_off("the same device and client id connected again")
            await asyncio.wait([self._visits[old].task])
        if connection.ending:
            raise ProtocolError("gone before its CONNACK")

    async def _enter(self, connection: Connection, proven: Proven) -> None:
        """Answers the CONNECT, and takes packets from then on."""
        visit, kept = self._visits[connection], None
        if proven.clean:
            self._ports.sessions.drop(proven.session_key)
        else:
            try:
                kept = await self._load(proven)
            except (RedisError, OSError, AemosError):
                visit.is_cut_short = True
        if connection.ending or self._by_session.get(proven.session_key) is not connection:
            return
        connection.write(ConnackPacket.build(int(kept is not None), 0).to_bytes())
        keeping = not (proven.clean or visit.is_cut_short)
        received = self._received_of(proven.session_key, keeping)
        visit.link = DeviceLink(connection, proven, received, self._ports, keeping=keeping)
        visit.link.start(kept)

    async def _load(self, proven: Proven) -> Kept | None:
        await self._ports.feed.position(proven.device.organization_id)
        return await self._ports.sessions.load(proven.session_key)

    def _received_of(self, key: str, keeping: bool) -> Received:
        found = self._received.pop(key, None)
        if not keeping or found is None:
            found = Received()
        if keeping:
            self._received[key] = found
            if len(self._received) > self._limits.connections:
                del self._received[next(iter(self._received))]
        return found

    # Every second.

    def _refresh(self) -> None:
        for visit in self._visits.values():
            if visit.link is not None:
                visit.link.save()

    async def _end_what_was_cut_short(self) -> None:
        """A device whose session could not be read connects again, and goes on with it."""
        short = [(c, visit.proven) for c, visit in self._visits.items() if visit.is_cut_short]
        with suppress(RedisError, OSError, AemosError):
            if short and short[0][1] is not None:
                await self._load(short[0][1])
                for connection, _ in short:
                    connection.end("its session can be read again")

    async def _all_gone(self) -> None:
        if self._visits:
            await asyncio.wait([visit.task for visit in self._visits.values()], timeout=self._limits.drain_s)


@asynccontextmanager
async def mqtt_edge(
    host: str,
    port: int,
    auth: DeviceAuth,
    uplink: Uplink,
    downlink: Downlink,
    feed: NotificationFeed,
    sessions: Sessions,
    read: ReadLog,
    limits: Limits | None = None,
) -> AsyncIterator[MqttEdge]:
    """Listens on `port` until the end of the block; PortInUse when somebody else does."""
    limits = limits or Limits()
    ports = Ports(uplink, downlink, Downlink(), feed, sessions, Backlog(feed, read), limits.resend_s)
    edge = MqttEdge(auth, ports, limits)
    await edge.listen(host, port)
    try:
        yield edge
    finally:
        await edge.close()
