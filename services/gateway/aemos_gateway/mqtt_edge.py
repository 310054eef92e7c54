"""MQTT 3.1.1 for devices: readings come in and are acknowledged when they are durable, notifications go out."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from aemos_core.errors import AemosError, Kind
from aemos_core.process import PortInUse
from amqtt.broker import Broker
from amqtt.errors import MQTTError
from amqtt.mqtt.connack import ConnackPacket
from amqtt.session import Session

from aemos_gateway.device_auth import DeviceAuth
from aemos_gateway.downlink import Downlink
from aemos_gateway.mqtt_admission import Proven, Refusal, prove
from aemos_gateway.mqtt_broker import connected, new_session, open_broker
from aemos_gateway.mqtt_connection import Connection
from aemos_gateway.mqtt_device import DeviceLink, Ports
from aemos_gateway.mqtt_frames import ProtocolError
from aemos_gateway.service import Uplink

log = logging.getLogger("aemos.gateway.mqtt")

PORT_VARIABLE = "AEMOS_MQTT_PORT"
_BACKLOG = 1024
_RECHECK_S = 1.0
_AT_ONCE = 32
"""Connections let in, let go or asked about at the same time: a storm of them leaves the others their turn."""


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


class MqttEdge:
    """A component: the MQTT connections of this process."""

    def __init__(self, broker: Broker, auth: DeviceAuth, ports: Ports, limits: Limits) -> None:
        self._broker = broker
        self._auth = auth
        self._ports = ports
        self._limits = limits
        self._visits: dict[Connection, _Visit] = {}
        self._by_session: dict[str, Connection] = {}
        self._admissions = asyncio.Semaphore(_AT_ONCE)
        self._departures = asyncio.Semaphore(_AT_ONCE)
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
        while not await _set_within(stop, _RECHECK_S):
            await self._recheck()
        self._server.close()
        for connection, visit in list(self._visits.items()):
            if visit.link is not None:
                visit.link.leave()
            else:
                connection.end("")
        await self._all_gone()

    async def close(self) -> None:
        """Cuts off whatever is left."""
        self._server.close()
        for connection in self.connections:
            connection.cut_off("this process stops")
        await self._all_gone()

    def disconnect(self, device_uuid: str) -> int:
        """Closes every connection of a device, whether it listens or not; how many there were."""
        found = [c for c, proven in self._all_proven() if proven.device.device_uuid == device_uuid]
        for connection in found:
            connection.end("an operator asked for it")
        return len(found)

    # The way in: Door of mqtt_broker.

    def _made(self, connection: Connection) -> None:
        if len(self._visits) >= self._limits.connections:
            connection.cut_off("too many connections")
            return
        self._visits[connection] = _Visit(asyncio.get_running_loop().create_task(self._serve(connection)))

    async def _serve(self, connection: Connection) -> None:
        try:
            await connected(self._broker, connection, self)
        except Exception:
            log.exception("mqtt %s: cut off", connection.peer)
        finally:
            connection.end("")
            await connection.ended
            self._forget(connection, self._visits.pop(connection).proven)

    def _forget(self, connection: Connection, proven: Proven | None) -> None:
        if proven is None:
            return
        key = proven.session_key
        if self._by_session.get(key) is connection:
            del self._by_session[key]
        session, _ = self._broker.sessions.get(key, (None, None))
        if session is not None and session.clean_session:
            del self._broker.sessions[key]  # amqtt would go on with it when a CONNECT asks for a kept one

    async def admit(self, connection: Connection) -> Session:
        """The session of a connection that proved whose it is."""
        try:
            async with asyncio.timeout(self._limits.connect_s):
                body = await connection.connect_packet()
                async with self._admissions:
                    proven = await prove(body, self._auth)
                    await asyncio.sleep(0)  # a session costs amqtt half a millisecond: no more of them in one turn
                    return await self._admit(connection, proven)
        except Refusal as refusal:
            connection.write(ConnackPacket.build(0, refusal.code).to_bytes())
            reason = f"CONNACK {refusal.code}: {refusal}"
        except ProtocolError as error:
            reason = str(error)
        except TimeoutError:
            reason = "no CONNECT in time"
        connection.end(reason)
        raise MQTTError(reason)

    async def _admit(self, connection: Connection, proven: Proven) -> Session:
        """Takes the session over (MQTT 3.1.1, 3.1.4): the old connection is gone before amqtt looks the session up."""
        key = proven.session_key
        old = self._by_session.get(key)
        self._by_session[key] = connection
        self._visits[connection].proven = proven
        if old is not None:
            old.cut_off("the same device and client id connected again")
            await asyncio.wait([self._visits[old].task])
        if connection.ending:
            raise ProtocolError("gone before its CONNACK")
        sessions = self._broker.sessions
        full = key not in sessions and len(sessions) >= 2 * self._limits.connections
        return new_session(key, proven.clean or full)

    def enter(self, connection: Connection, session: Session) -> None:
        """The CONNACK is written."""
        visit = self._visits[connection]
        assert visit.proven is not None  # amqtt comes here with what admit gave it
        visit.link = DeviceLink(connection, visit.proven, session, self._ports)
        visit.link.start()

    async def gone(self, connection: Connection) -> None:
        """The connection has ended, and it is its turn to be tidied up."""
        await connection.ended
        async with self._departures:
            await asyncio.sleep(0)

    # Revoked tokens.

    async def _recheck(self) -> None:
        unsure = [(c, proven) for c, proven in self._all_proven() if self._auth.known(proven.token) is None]
        for at in range(0, len(unsure), _AT_ONCE):
            checks = (self._check(connection, proven.token) for connection, proven in unsure[at : at + _AT_ONCE])
            if not all(await asyncio.gather(*checks)):
                return  # ingest does not answer: who was proven stays

    async def _check(self, connection: Connection, token: bytes) -> bool:
        try:
            await self._auth.resolve(token)
        except AemosError as error:
            if error.kind is not Kind.UNAUTHENTICATED:
                return False
            connection.end("its token was revoked")
        return True

    def _all_proven(self) -> list[tuple[Connection, Proven]]:
        return [(c, visit.proven) for c, visit in self._visits.items() if visit.proven is not None]

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
    limits: Limits | None = None,
) -> AsyncIterator[MqttEdge]:
    """Listens on `port` until the end of the block; PortInUse when somebody else does."""
    limits = limits or Limits()
    async with open_broker() as broker:
        edge = MqttEdge(broker, auth, Ports(uplink, downlink, Downlink(), limits.resend_s), limits)
        await edge.listen(host, port)
        try:
            yield edge
        finally:
            await edge.close()


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()
