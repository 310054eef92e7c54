"""What the MQTT edge leans on, without a service behind it, and a client that can say anything."""

import asyncio
import logging
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from aemos_core.errors import AemosError, unauthenticated, unavailable
from aemos_core.notification_log import Logged, LogId, NotificationFeed, Published
from aemos_gateway.device_auth import Device, DeviceAuth
from aemos_gateway.downlink import Downlink
from aemos_gateway.mqtt_connection import Hold
from aemos_gateway.mqtt_device import Limits, Ports
from aemos_gateway.mqtt_edge import MqttEdge
from aemos_gateway.mqtt_hearing import Backlog
from aemos_gateway.mqtt_sessions import Kept, Sessions
from aemos_gateway.presence import Presence
from aemos_gateway.readings import Reading, decode
from aemos_gateway.service import ONCE, Done, Origin, Uplink

from tests.support.fake_coap import receipt
from tests.support.fake_rejections import FakeRejections

UUID = "abc-123"
TOKEN = "the-token-of-abc-123"
OTHER_UUID = "def-456"
OTHER_TOKEN = "the-token-of-def-456"
READING = b'{"value": 25.5, "variableName": "temperature"}'

DEADLINE_S = 5.0


class FakeAuth(DeviceAuth):
    """Two devices; `broken` is what ingest answers instead."""

    def __init__(self) -> None:
        self.devices = {TOKEN.encode(): Device(7, 1, 42, UUID), OTHER_TOKEN.encode(): Device(8, 2, 43, OTHER_UUID)}
        self.broken: AemosError | None = None
        self.asked = 0
        self.answering = asyncio.Event()
        """While it is clear, `resolve` waits."""
        self.answering.set()

    def known(self, token: bytes) -> Device | None:
        return self.devices.get(token)

    async def resolve(self, token: bytes) -> Device:
        self.asked += 1
        await self.answering.wait()
        if self.broken is not None:
            raise self.broken
        if token not in self.devices:
            raise unauthenticated()
        return self.devices[token]


class FakeUplink(Uplink):
    """Stores what it is given: at once, or when `commit` is called while `holding`. What may be a repetition is stored
    unless it is `known`, as ingest knows it for some time.

    `refusal` says of a reading why it is refused, `full` what `put` itself raises.
    """

    def __init__(self) -> None:
        self.rejections = self.refused = FakeRejections()
        self.presence = Presence(None)  # type: ignore[arg-type]
        self.stored: list[bytes] = []
        self.waiting: list[tuple[Reading, bytes, Origin, Done]] = []
        self.known: set[int] = set()
        self.most_waiting = 0
        self.attempts = 0
        self.holding = False
        self.refusal: Callable[[Reading], AemosError | None] = lambda _: None
        self.full: AemosError | None = None

    def put(
        self,
        device: Device,
        payload: bytes,
        protocol: str,
        done: Done,
        origin: Origin = ONCE,
        *,
        is_partial: bool = False,
    ) -> None:
        assert protocol == "mqtt"
        self.attempts += 1
        if self.full is not None:
            raise self.full
        (reading,) = decode(payload).readings
        if not self.waiting and not self.holding:
            asyncio.get_running_loop().call_soon(self.commit)
        self.waiting.append((reading, payload, origin, done))
        self.most_waiting = max(self.most_waiting, len(self.waiting))

    def commit(self) -> None:
        """Answers whatever waits, as one batch."""
        batch, self.waiting = self.waiting, []
        for reading, payload, origin, done in batch:
            if (error := self.refusal(reading)) is not None:
                done(error)
                continue
            if not (origin.maybe_repeated and origin.key in self.known):
                self.stored.append(payload)
                self.known.add(origin.key)
            done(receipt(len(self.stored), "sensor-1", reading))


class FakeLog(NotificationFeed):
    """The log of both organizations, and the feed of it, without Redis; `away` is how it does not answer."""

    def __init__(self, downlink: Downlink) -> None:
        self.downlink = downlink
        self.entries: list[Logged] = []
        self.away = False
        self.sessions: dict[str, Kept] = {}
        """What is saved."""
        self.saves = 0
        self.pages = 0
        self.answering = asyncio.Event()
        """While it is clear, `read` waits."""
        self.answering.set()

    def reached(self, organization_id: int) -> LogId:
        return self.entries[-1].id if self.entries else LogId()

    async def position(self, organization_id: int) -> LogId:
        if self.away:
            raise unavailable("Redis is away")
        return self.reached(organization_id)

    async def read(self, organization_id: int, after: LogId, upto: LogId, count: int) -> list[Logged]:
        await self.answering.wait()
        if self.away:
            raise ConnectionError
        self.pages += 1
        return [entry for entry in self.entries if after < entry.id <= upto][:count]

    def publish(self, number: int, uuid: str = UUID) -> None:
        """Logs a notification and hands it over, as the feed would."""
        entry = Logged(LogId(1, number), "e", (f"device-uuid-{uuid}",), f'{{"number":{number}}}')
        self.entries.append(entry)
        self.downlink.deliver(Published(1, entry.id, entry.event, entry.rooms, entry.notification.encode()))


class FakeSessions(Sessions):
    """Sessions in memory, which outlive a gateway."""

    def __init__(self, log: FakeLog) -> None:
        super().__init__(cast(Any, None))
        self._log = log

    async def _read(self, key: str) -> Kept | None:
        if self._log.away:
            raise ConnectionError
        return self._log.sessions.get(key)

    async def _write(self, batch: Mapping[str, Kept | None], taken: list[str]) -> None:
        await asyncio.sleep(0)
        if self._log.away:
            raise ConnectionError
        self._log.saves += 1
        for key, kept in batch.items():
            self._log.sessions.pop(key, None)
            if kept is not None:
                self._log.sessions[key] = kept


class Errors(logging.Handler):
    """What nobody should have to read."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@dataclass
class World:
    """An edge that listens, and its ports."""

    edge: MqttEdge
    auth: FakeAuth
    uplink: FakeUplink
    downlink: Downlink
    log: FakeLog
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    """Of the clients that are to be closed at the end."""

    @property
    def count(self) -> int:
        """How many connections there are."""
        return len(self.edge.connections)

    def held(self, why: Hold) -> bool:
        """Whether some connection is not read from for this reason."""
        return any(why in connection.holds for connection in self.edge.connections)

    def notify(self, payload: bytes) -> int:
        """Sends to the first device what would come from Redis."""
        return self.downlink.send(UUID, payload)


@asynccontextmanager
async def world(
    limits: Limits | None = None, real_auth: DeviceAuth | None = None, log: FakeLog | None = None
) -> AsyncIterator[World]:
    """A running edge on a free port, that begins with the `log` of another one; it must leave no task, no listener and
    no error in the log behind."""
    before, errors = asyncio.all_tasks(), Errors()
    logging.getLogger().addHandler(errors)
    auth, uplink, downlink = FakeAuth(), FakeUplink(), Downlink()
    log = log or FakeLog(downlink)
    log.downlink = downlink
    ports = Ports(uplink, downlink, FakeSessions(log), Backlog(log, log.read), limits or Limits())
    edge = MqttEdge(real_auth or auth, ports)
    await edge.listen("127.0.0.1", 0)
    async with aclosing(edge):
        it = World(edge, auth, uplink, downlink, log)
        running = asyncio.create_task(edge.run(it.stop))
        try:
            yield it
        finally:
            it.stop.set()
            uplink.holding = False
            uplink.commit()
            await running
            for writer in it.writers:
                writer.close()
            await asyncio.gather(*(writer.wait_closed() for writer in it.writers), return_exceptions=True)
            logging.getLogger().removeHandler(errors)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() - before == set()
    assert downlink.all() == []
    assert errors.messages == []


def string(value: str | bytes) -> bytes:
    """A string of MQTT with its length."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("!H", len(data)) + data


def packet(header: int, body: bytes) -> bytes:
    """A packet with its remaining length."""
    length, size = b"", len(body)
    while True:
        size, low = divmod(size, 128)
        length += bytes([low | (128 if size else 0)])
        if not size:
            return bytes([header]) + length + body


def connect(
    token: str | bytes | None = TOKEN,
    *,
    uuid: str = UUID,
    client: str = "c1",
    clean: bool = True,
    keep_alive: int = 60,
    level: int = 4,
    will: tuple[str, bytes] | None = None,
    flags: int = 0,
) -> bytes:
    """A CONNECT; `flags` are added to those that follow from the rest."""
    flags |= 2 * clean + (0x04 if will else 0) + (0xC0 if token is not None else 0)
    body = string("MQTT") + bytes([level, flags]) + struct.pack("!H", keep_alive) + string(client)
    if will is not None:
        body += string(will[0]) + string(will[1])
    if token is not None:
        body += string(uuid) + string(token)
    return packet(0x10, body)


def publish(
    payload: bytes = READING,
    *,
    topic: str | bytes = f"aemos/devices/{UUID}/telemetry",
    qos: int = 1,
    number: int = 1,
    flags: int = 0,
) -> bytes:
    """A PUBLISH."""
    return packet(0x30 | qos << 1 | flags, string(topic) + (struct.pack("!H", number) if qos else b"") + payload)


def subscribe(*filters: tuple[str | bytes, int], number: int = 9) -> bytes:
    """A SUBSCRIBE."""
    return packet(0x82, struct.pack("!H", number) + b"".join(string(name) + bytes([qos]) for name, qos in filters))


def own(name: str) -> str:
    """A topic of the first device."""
    return f"aemos/devices/{UUID}/{name}"


DISCONNECT = b"\xe0\x00"
PINGREQ = b"\xc0\x00"
PINGRESP = (0xD0, b"")
ACCEPTED = (0x20, b"\0\0")


class Door:
    """The MQTT port of a running installation, for `Raw`."""

    def __init__(self, demo: Mapping[str, Any]) -> None:
        self.edge = SimpleNamespace(port=demo["mqtt"]["port"])
        self.writers: list[asyncio.StreamWriter] = []


class Raw:
    """A client that sends bytes and reads packets."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, it: "World | Door", *packets: bytes) -> "Raw":
        """Connects and sends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", it.edge.port)
        it.writers.append(writer)
        client = cls(reader, writer)
        client.send(*packets)
        return client

    @classmethod
    async def connected(cls, it: "World | Door", *packets: bytes, connect_with: bytes = b"") -> "Raw":
        """Connects, sees itself accepted, and sends."""
        client = await cls.open(it, connect_with or connect())
        assert await client.receive() == ACCEPTED
        client.send(*packets)
        return client

    def send(self, *packets: bytes) -> None:
        """In one write."""
        self._writer.write(b"".join(packets))

    async def receive(self) -> tuple[int, bytes] | None:
        """The next packet's first byte and body; None when the connection is closed."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                header = (await self._reader.readexactly(1))[0]
                length = shift = 0
                while True:
                    byte = (await self._reader.readexactly(1))[0]
                    length |= (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        return header, await self._reader.readexactly(length)
            except (asyncio.IncompleteReadError, ConnectionError):
                return None

    async def rest(self) -> list[tuple[int, bytes]]:
        """What comes until the connection is closed."""
        packets = []
        while (received := await self.receive()) is not None:
            packets.append(received)
        return packets

    async def alive(self) -> bool:
        """Whether a PINGREQ is answered; nothing else may be on its way."""
        self.send(PINGREQ)
        return await self.receive() == PINGRESP

    def close(self) -> None:
        """Leaves without DISCONNECT."""
        self._writer.close()


def suback(*codes: int) -> tuple[int, bytes]:
    """The answer to `subscribe`."""
    return 0x90, b"\0\x09" + bytes(codes)


@asynccontextmanager
async def listening(it: World, *topics: str, qos: int = 0, client: str = "listener") -> AsyncIterator[Raw]:
    """Another connection of the device that hears topics of it."""
    raw = await Raw.connected(it, subscribe(*((t, qos) for t in topics)), connect_with=connect(client=client))
    assert await raw.receive() == suback(*[qos] * len(topics))
    yield raw
    raw.close()
