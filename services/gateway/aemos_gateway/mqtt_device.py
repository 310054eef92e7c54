"""A device's connection after its CONNECT: what each packet does, and what its end means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from aemos_core.notification_log import NotificationFeed
from amqtt.codecs_amqtt import encode_string
from amqtt.mqtt.suback import SubackPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsuback import UnsubackPacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket

from aemos_gateway import mqtt_frames as frames
from aemos_gateway.downlink import Downlink
from aemos_gateway.mqtt_admission import Proven
from aemos_gateway.mqtt_backlog import Backlog
from aemos_gateway.mqtt_connection import Connection, Hold
from aemos_gateway.mqtt_frames import ProtocolError, packet_id, parse
from aemos_gateway.mqtt_hearing import Hearing
from aemos_gateway.mqtt_received import Received
from aemos_gateway.mqtt_sessions import Kept, Sessions
from aemos_gateway.mqtt_telemetry import PROTOCOL, Telemetry
from aemos_gateway.mqtt_topics import Topics
from aemos_gateway.service import Uplink


@dataclass(frozen=True, slots=True)
class Ports:
    """What the connections of this process share."""

    uplink: Uplink
    downlink: Downlink
    errors: Downlink
    """Who hears explanations: the listeners of the errors topics."""
    feed: NotificationFeed
    sessions: Sessions
    backlog: Backlog
    resend_s: float
    """A connection that is owed an acknowledgement which will not come is closed after this time, or up to half of it
    sooner, for only then a device sends again."""


class DeviceLink:
    """Takes the packets of one connection of one device. While `keeping`, its session outlives it."""

    def __init__(
        self, connection: Connection, proven: Proven, received: Received, ports: Ports, *, keeping: bool
    ) -> None:
        uuid = proven.device.device_uuid
        topics = Topics.of(uuid)
        self.keeping = keeping
        self._ports = ports
        self._connection = connection
        self._proven = proven
        self._will = proven.will
        self._telemetry_topic = encode_string(topics.telemetry)
        self._hubs = {topics.notifications: ports.downlink, topics.errors: ports.errors}
        organization_id = proven.device.organization_id
        reached = partial(ports.feed.reached, organization_id)
        self._hearing = Hearing(connection, proven.device, self._hubs, reached, ports.backlog.put)
        self._telemetry = Telemetry(
            connection,
            proven.device,
            ports.uplink,
            received,
            lambda e: _tell(ports.errors, uuid, e),
            proven.session_key,
            ports.resend_s,
        )

    def start(self, kept: Kept | None) -> None:
        """Goes on with a session that was kept, then takes packets."""
        if kept is not None:
            self._hearing.resume(kept)
        self.save()
        self._connection.open(self._receive, self._lost, self._proven.keep_alive_s)

    def save(self, then: Callable[[], None] | None = None) -> None:
        """Calls `then` when the session, if it is to be kept, is stored as it is now."""
        if self.keeping:
            self._ports.sessions.save(self._proven.session_key, self._hearing.kept(), then)
        elif then is not None:
            then()

    def leave(self) -> None:
        """Reads nothing more, and ends the connection, without its will, when what it took is answered."""
        self._connection.hold(Hold.LEAVING)
        self._telemetry.when_idle(self._end_cleanly)

    def _receive(self, header: int, body: bytes) -> None:
        if header & 0xF0 == frames.PUBLISH:
            self._publish(header, body)
        elif (handle := self._HANDLERS.get(header)) is not None:
            handle(self, body)
        else:
            raise ProtocolError(f"a packet that begins with 0x{header:02x}")

    def _lost(self) -> None:
        self._telemetry.lost()
        self._hearing.lost()
        self.save()
        if self._will is not None and (hub := self._hubs.get(self._will.topic)) is not None:
            _tell(hub, self._proven.device.device_uuid, self._will.payload)

    def _end_cleanly(self) -> None:
        self._will = None
        self._connection.end("")

    def _publish(self, header: int, body: bytes) -> None:
        qos = header >> 1 & 3
        if qos == 3 or (qos == 0 and header & 8):
            raise ProtocolError(f"a PUBLISH that begins with 0x{header:02x}")
        if not body.startswith(self._telemetry_topic):
            raise ProtocolError("a PUBLISH to another topic than the device's telemetry")
        at = len(self._telemetry_topic)
        if qos == 0:
            self._telemetry.take(0, b"", body[at:])
        else:
            dup = bool(header & 8)
            self._telemetry.take(qos, packet_id(body[at : at + 2]), body[at + 2 :], dup=dup)

    def _puback(self, body: bytes) -> None:
        if self._hearing.acknowledged(int.from_bytes(packet_id(body))):
            self.save()

    def _pubrel(self, body: bytes) -> None:
        number = packet_id(body)
        self._telemetry.released(number)
        self._connection.write(frames.PUBCOMP_HEADER + number)

    def _subscribe(self, body: bytes) -> None:
        packet = parse(SubscribePacket, frames.SUBSCRIBE, body)
        wanted = packet.payload.topics
        if not wanted or any(qos > 2 for _, qos in wanted):
            raise ProtocolError("a SUBSCRIBE without a filter or with a QoS over 2")
        number = int.from_bytes(packet_id(body))
        codes = [self._hearing.grant(frames.topic(name), qos) for name, qos in wanted]
        self.save(partial(self._connection.write, SubackPacket.build(number, codes).to_bytes()))

    def _unsubscribe(self, body: bytes) -> None:
        packet = parse(UnsubscribePacket, frames.UNSUBSCRIBE, body)
        if not packet.payload.topics:
            raise ProtocolError("an UNSUBSCRIBE without a filter")
        number = int.from_bytes(packet_id(body))
        for name in packet.payload.topics:
            self._hearing.revoke(frames.topic(name))
        self.save(partial(self._connection.write, UnsubackPacket.build(number).to_bytes()))

    def _pingreq(self, _: bytes) -> None:
        self._connection.write(frames.PINGRESP)

    def _disconnect(self, _: bytes) -> None:
        self._end_cleanly()

    _HANDLERS: ClassVar[dict[int, Callable[[DeviceLink, bytes], None]]] = {
        frames.PUBACK: _puback,
        frames.PUBREL: _pubrel,
        frames.SUBSCRIBE: _subscribe,
        frames.UNSUBSCRIBE: _unsubscribe,
        frames.PINGREQ: _pingreq,
        frames.DISCONNECT: _disconnect,
    }


def _tell(hub: Downlink, device_uuid: str, payload: bytes) -> None:
    """To the device's MQTT sessions only: a will or an explanation says nothing to a CoAP observer."""
    for listener in hub.of(device_uuid):
        if listener.protocol == PROTOCOL:
            listener.send(payload, None)
