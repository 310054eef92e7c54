"""MQTT 3.1.1 for devices: readings come in and are acknowledged when they are durable, notifications go out."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from aemos_core.errors import AemosError
from aemos_core.process import PortInUse
from aemos_core.waiting import wait
from amqtt.mqtt.connack import ConnackPacket
from redis.exceptions import RedisError

from aemos_gateway.device_auth import DeviceAuth
from aemos_gateway.mqtt_admission import Proven, Refusal, prove
from aemos_gateway.mqtt_connection import Connection
from aemos_gateway.mqtt_device import DeviceLink, Ports
from aemos_gateway.mqtt_frames import ProtocolError
from aemos_gateway.mqtt_sessions import Kept
from aemos_gateway.mqtt_telemetry import Unreleased
from aemos_gateway.token_holders import TokenHolders

log = logging.getLogger("aemos.gateway.mqtt")

PORT_VARIABLE = "AEMOS_MQTT_PORT"
_BACKLOG = 1024
_PROBES = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""Seconds, seconds and times: a device that vanished is noticed, whatever keep-alive it asked for, and none too."""
_RECHECK_S = 1.0
_REFRESH_S = 600.0
"""A session that is kept is saved so often, however silent it is."""
_SAVE_S = 3.0
_AT_ONCE = 32
"""Connections let in at the same time: a storm of them leaves the others their turn."""


class MqttEdge:
    """A component: the MQTT connections of this process."""

    def __init__(self, auth: DeviceAuth, ports: Ports) -> None:
        self._auth = auth
        self._holders = TokenHolders(auth)
        self._ports = ports
        self._tasks: dict[Connection, asyncio.Task[None]] = {}
        self._devices: defaultdict[str, dict[str, DeviceLink]] = defaultdict(dict)
        """By device and session: the connections of those who proved to be one."""
        self._unreleased: dict[str, Unreleased] = {}
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
        return list(self._tasks)

    async def listen(self, host: str, port: int) -> None:
        """Accepts connections until it is closed; PortInUse when somebody else does."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: Connection(self._made), host, port, backlog=_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(port, PORT_VARIABLE) from None
            raise
        for listening in self._server.sockets:  # accepted ones have their options
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _PROBES.items():
                if option := getattr(socket, name, None):  # not everywhere
                    listening.setsockopt(socket.IPPROTO_TCP, option, value)

    async def run(self, stop: asyncio.Event) -> None:
        """Ends connections whose token was revoked; at the end answers what was taken, then closes."""
        refresh_at = time.monotonic() + _REFRESH_S
        while not await wait(stop, _RECHECK_S):
            await self._holders.check()
            await self._end_what_was_cut_short()
            if time.monotonic() > refresh_at:
                refresh_at += _REFRESH_S
                for link in self._links():
                    link.save()
        self._server.close()
        known = self._links()
        for link in known:
            link.leave()
        for connection in self._tasks.keys() - {link.connection for link in known}:
            connection.end("")
        await self._all_gone()
        await self._ports.sessions.drain(_SAVE_S)

    async def aclose(self) -> None:
        """Cuts off whatever is left."""
        self._server.close()
        for connection in self.connections:
            connection.cut_off("this process stops")
        await self._all_gone()
        await self._ports.backlog.close()
        await self._ports.sessions.close()

    def disconnect(self, device_uuid: str) -> int:
        """Closes every connection of a device, whether it listens or not; how many there were."""
        links = self._links(device_uuid)
        for link in links:
            link.connection.end("an operator asked for it")
        return len(links)

    def taken(self, message: bytes) -> None:
        """Another gateway says which session came to it: a connection of it here is over."""
        key = self._ports.sessions.taken_elsewhere(message)
        self._unreleased.pop(key, None)
        for link in self._links(key.partition("/")[0]):
            if link.proven.session_key == key:
                link.keeping = False
                link.connection.cut_off("the same device and client id connected to another gateway")

    # The way in.

    def _made(self, connection: Connection) -> None:
        if len(self._tasks) >= self._ports.limits.connections:
            connection.cut_off("too many connections")
            return
        self._tasks[connection] = asyncio.get_running_loop().create_task(self._serve(connection))

    async def _serve(self, connection: Connection) -> None:
        try:
            if (proven := await self._admit(connection)) is not None:
                await self._attend(connection, proven)
        except Exception:
            log.exception("mqtt %s: cut off", connection.peer)
        finally:
            connection.end("")
            await connection.ended
            del self._tasks[connection]

    async def _admit(self, connection: Connection) -> Proven | None:
        """Whose the connection is, when it proved it."""
        try:
            async with asyncio.timeout(self._ports.limits.connect_s):
                body = await connection.connect_packet()
                async with self._admissions:
                    proven = await prove(body, self._auth)
                    await asyncio.sleep(0)  # a storm of them leaves the others their turn
                    if connection.ending:
                        raise ProtocolError("gone before its CONNACK")
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

    async def _attend(self, connection: Connection, proven: Proven) -> None:
        """Takes the session over (MQTT 3.1.1, 3.1.4), answers the CONNECT, and stays until the connection's end."""
        device, sessions = proven.device, self._ports.sessions
        tell = partial(self._tell, device.device_uuid)
        link = DeviceLink(connection, proven, self._unreleased_of(proven), self._ports, tell)
        with (
            self._ports.uplink.presence.connected(device.device_id),
            self._holders.holding(proven.token, partial(connection.end, "its token was revoked")),
            self._in_place_of(link) as old,
        ):
            sessions.take(proven.session_key)
            if old is not None:
                old.connection.cut_off("the same device and client id connected again")
                await asyncio.wait([self._tasks[old.connection]])
            kept = await self._load(link)
            if not connection.ending:
                connection.write(ConnackPacket.build(int(kept is not None), 0).to_bytes())
                await link.serve(kept)
            await connection.ended

    @contextmanager
    def _in_place_of(self, link: DeviceLink) -> Iterator[DeviceLink | None]:
        """While the block lasts the link is its session's; gives the one that was."""
        uuid, key = link.proven.device.device_uuid, link.proven.session_key
        old = self._devices[uuid].get(key)
        self._devices[uuid][key] = link
        try:
            yield old
        finally:
            if self._devices[uuid].get(key) is link:
                del self._devices[uuid][key]
            if not self._devices[uuid]:
                del self._devices[uuid]

    async def _load(self, link: DeviceLink) -> Kept | None:
        """What the link's session is to go on with."""
        if link.proven.clean:
            self._ports.sessions.drop(link.proven.session_key)
            return None
        try:
            kept = await self._read(link.proven)
        except (RedisError, OSError, AemosError):
            link.cut_short = True
            return None
        link.keeping = True
        return kept

    async def _read(self, proven: Proven) -> Kept | None:
        await self._ports.backlog.feed.position(proven.device.organization_id)
        return await self._ports.sessions.load(proven.session_key)

    def _unreleased_of(self, proven: Proven) -> Unreleased:
        before = self._unreleased.pop(proven.session_key, {})
        if proven.clean:
            return {}
        self._unreleased[proven.session_key] = before
        if len(self._unreleased) > self._ports.limits.connections:
            del self._unreleased[next(iter(self._unreleased))]
        return before

    # Those who are in.

    def _links(self, device_uuid: str | None = None) -> list[DeviceLink]:
        """Of one device, or all of them."""
        if device_uuid is not None:
            return list(self._devices.get(device_uuid, {}).values())
        return [link for links in self._devices.values() for link in links.values()]

    def _tell(self, device_uuid: str, topic: str, payload: bytes) -> None:
        for link in self._links(device_uuid):
            link.hearing.say(topic, payload)

    async def _end_what_was_cut_short(self) -> None:
        """A device whose session could not be read connects again, and goes on with it."""
        if cut_short := [link for link in self._links() if link.cut_short]:
            with suppress(RedisError, OSError, AemosError):
                await self._read(cut_short[0].proven)
                for link in cut_short:
                    link.connection.end("its session can be read again")

    async def _all_gone(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=self._ports.limits.drain_s)
