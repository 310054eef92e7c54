"""A device's connection after its CONNECT: what each packet does, and what its end means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from amqtt.mqtt.suback import SubackPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsuback import UnsubackPacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket

from aemos_gateway import mqtt_frames as frames
from aemos_gateway.downlink import Downlink
from aemos_gateway.mqtt_admission import Proven
from aemos_gateway.mqtt_connection import Connection, Hold
from aemos_gateway.mqtt_frames import ProtocolError, packet_id, parse
from aemos_gateway.mqtt_hearing import Backlog, Hearing
from aemos_gateway.mqtt_sessions import Kept, Sessions
from aemos_gateway.mqtt_telemetry import Telemetry, Unreleased
from aemos_gateway.service import Uplink

MOST_UNSAVED = 64
"""Answers to SUBSCRIBE and UNSUBSCRIBE of one connection that wait for Redis; with more, nothing is read from it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process bears with."""

    connections: int = 10_000
    """Beyond them a new one is closed at once."""
    connect_s: float = 10.0
    """From the first byte of TCP to the CONNACK."""
    resend_s: float = 30.0
    """A connection that is owed an acknowledgement which will not come is closed after this time, or up to half of it
    sooner, for only then a device sends again."""
    drain_s: float = 15.0
    """At the end, how long acknowledgements are waited for."""


@dataclass(frozen=True, slots=True)
class Ports:
    """What the connections of this process share."""

    uplink: Uplink
    downlink: Downlink
    sessions: Sessions
    backlog: Backlog
    limits: Limits = Limits()


class DeviceLink:
    """Takes the packets of one connection of one device.

    `tell` sends a payload to whichever of the device's connections hear the topic.
    """

    def __init__(
        self,
        connection: Connection,
        proven: Proven,
        unreleased: Unreleased,
        ports: Ports,
        tell: Callable[[str, bytes], None],
    ) -> None:
        self.connection = connection
        self.proven = proven
        self.keeping = False
        """Its session outlives it."""
        self.cut_short = False
        """Its session is to be kept, and could not be read: it ends when that is possible again."""
        self._sessions = ports.sessions
        self._tell = tell
        self._will = proven.will
        self._unreleased = unreleased
        self._unsaved = 0
        self.hearing = Hearing(connection, proven, ports.downlink, ports.backlog)
        explain = partial(tell, proven.topics.errors)
        self._telemetry = Telemetry(connection, proven, ports.uplink, unreleased, explain, ports.limits.resend_s)

    async def serve(self, kept: Kept | None) -> None:
        """Goes on with a session that was kept, and takes packets until the connection's end."""
        if kept is not None:
            self.hearing.resume(kept)
        self.save()
        self.connection.open(self._receive, self.proven.keep_alive_s)
        await self.connection.ended
        self.hearing.lost()
        self.save()
        if self._will is not None:
            self._tell(*self._will)

    def save(self, *then: Callable[[], None]) -> None:
        """Stores the session as it is now, if it is to be kept, and calls `then`."""
        if self.keeping:
            self._sessions.save(self.proven.session_key, self.hearing.kept(), *then)

    def leave(self) -> None:
        """Reads nothing more, and ends the connection, without its will, when what it took is answered."""
        self.connection.hold(Hold.LEAVING)
        self._telemetry.when_idle(self._end_cleanly)

    def _receive(self, header: int, body: bytes) -> None:
        if header & 0xF0 == frames.PUBLISH:
            self._telemetry.publish(header, body)
            return
        match header, len(body):
            case frames.PUBACK, 2:
                self._puback(body)
            case frames.PUBREL, 2:
                self._pubrel(body)
            case frames.SUBSCRIBE, _:
                self._subscribe(body)
            case frames.UNSUBSCRIBE, _:
                self._unsubscribe(body)
            case frames.PINGREQ, 0:
                self.connection.write(frames.PINGRESP)
            case frames.DISCONNECT, 0:
                self._end_cleanly()
            case _:
                raise ProtocolError(f"a packet of {len(body)} bytes that begins with 0x{header:02x}")

    def _end_cleanly(self) -> None:
        self._will = None
        self.connection.end("")

    def _puback(self, body: bytes) -> None:
        if self.hearing.acknowledged(int.from_bytes(packet_id(body))):
            self.save()

    def _pubrel(self, body: bytes) -> None:
        number = packet_id(body)
        self._unreleased.pop(number, None)
        self.connection.write(frames.PUBCOMP_HEADER + number)

    def _subscribe(self, body: bytes) -> None:
        packet = parse(SubscribePacket, frames.SUBSCRIBE, body)
        wanted = packet.payload.topics
        if not wanted or any(qos > 2 for _, qos in wanted):
            raise ProtocolError("a SUBSCRIBE without a filter or with a QoS over 2")
        number = int.from_bytes(packet_id(body))
        codes = [self.hearing.grant(frames.topic(name), qos) for name, qos in wanted]
        self._answer_when_saved(SubackPacket.build(number, codes).to_bytes())

    def _unsubscribe(self, body: bytes) -> None:
        packet = parse(UnsubscribePacket, frames.UNSUBSCRIBE, body)
        if not packet.payload.topics:
            raise ProtocolError("an UNSUBSCRIBE without a filter")
        number = int.from_bytes(packet_id(body))
        for name in packet.payload.topics:
            self.hearing.revoke(frames.topic(name))
        self._answer_when_saved(UnsubackPacket.build(number).to_bytes())

    def _answer_when_saved(self, answer: bytes) -> None:
        """At once when the session is not to be kept; not at all when another one will be gone on with."""
        if self.proven.clean:
            self.connection.write(answer)
        elif self.keeping:
            self._unsaved += 1
            if self._unsaved == MOST_UNSAVED:
                self.connection.hold(Hold.SAVING)
            self.save(partial(self._saved, answer))

    def _saved(self, answer: bytes) -> None:
        self._unsaved -= 1
        self.connection.release(Hold.SAVING)
        self.connection.write(answer)
