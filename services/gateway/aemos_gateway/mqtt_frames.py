"""MQTT 3.1.1 packets as bytes: the stream cut into them, and amqtt's parsers made strict. Pure."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from amqtt.adapters import BufferReader
from amqtt.errors import AMQTTError, MQTTError, NoDataError
from amqtt.mqtt.packet import MQTTFixedHeader
from amqtt.mqtt.publish import PublishPacket

CONNECT = 0x10
PUBLISH = 0x30
PUBACK = 0x40
PUBREL = 0x62
SUBSCRIBE = 0x82
UNSUBSCRIBE = 0xA2
PINGREQ = 0xC0
DISCONNECT = 0xE0
"""First bytes of what a device may send; of PUBLISH, only the upper half."""

PUBACK_HEADER = b"\x40\x02"
PUBREC_HEADER = b"\x50\x02"
PUBCOMP_HEADER = b"\x70\x02"
PINGRESP = b"\xd0\x00"

MAX_PUBLISH_BYTES = 1024 * 1024
"""Remaining length of a PUBLISH; more is refused at the fixed header."""
MAX_OTHER_BYTES = 16 * 1024
"""Remaining length of any other packet, CONNECT with its will included."""
_LONGEST_HEADER = 5


class ProtocolError(Exception):
    """The peer broke MQTT 3.1.1 or named a topic that is not its own: its connection is closed, its will published."""


class Frames:
    """Cuts a stream into packets, and holds no more of it than the packet that is not yet whole."""

    def __init__(self) -> None:
        self.opening = True
        """Only a CONNECT may come, so nobody who is not known yet makes us hold more than that."""
        self._held = bytearray()
        self._needed = 1

    def push(self, data: bytes) -> None:
        """Takes what was read."""
        self._held += data

    def cut(self) -> tuple[int, bytes] | None:
        """First byte and body of the next packet, None until it is whole; ProtocolError for a length that cannot be."""
        held = self._held
        if len(held) < self._needed or (extent := self._extent()) is None:
            return None
        start, end = extent
        if end > len(held):
            self._needed = end
            return None
        packet = held[0], bytes(held[start:end])
        del held[:end]
        self._needed = 1
        return packet

    def _extent(self) -> tuple[int, int] | None:
        """Where the body of the next packet begins and ends; None while its fixed header is not whole (2.2.3)."""
        held = self._held
        if self.opening and held[0] != CONNECT:
            raise ProtocolError("the first packet is not CONNECT")
        length = shift = 0
        for at, byte in enumerate(held[1:_LONGEST_HEADER], 2):
            length |= (byte & 127) << shift
            if byte < 128:
                if length > (MAX_PUBLISH_BYTES if held[0] & 0xF0 == PUBLISH else MAX_OTHER_BYTES):
                    raise ProtocolError(f"a packet of {length} bytes")
                return at, at + length
            shift += 7
        if len(held) >= _LONGEST_HEADER:
            raise ProtocolError("a remaining length of more than four bytes")
        return None


def parse(packet_class: Any, header: int, body: bytes) -> Any:
    """A packet that is well formed. amqtt takes invalid UTF-8, a missing end and a surplus one for text, so what it
    understood must give the same bytes again."""
    fixed = MQTTFixedHeader(header >> 4, header & 15, len(body))
    try:
        packet = _finish(packet_class.from_stream(BufferReader(body), fixed_header=fixed))
    except (AMQTTError, MQTTError, NoDataError) as error:
        raise ProtocolError(f"packet 0x{header:02x}: {error}") from None
    variable = packet.variable_header
    if bytes(variable.to_bytes()) + bytes(packet.payload.to_bytes(fixed, variable)) != body:
        raise ProtocolError(f"packet 0x{header:02x} is malformed")
    return packet


def _finish(parsing: Coroutine[Any, Any, Any]) -> Any:
    """amqtt parses in a coroutine; over a buffer it never waits, so it needs no task."""
    try:
        parsing.send(None)
    except StopIteration as done:
        return done.value
    parsing.close()
    raise AssertionError("amqtt waited for a buffer")


def packet_id(body: bytes) -> bytes:
    """The packet id that a body begins with; never 0 (MQTT 2.3.1)."""
    if len(body) < 2 or body[:2] == b"\0\0":
        raise ProtocolError("no packet id")
    return body[:2]


def topic(name: str) -> str:
    """A topic or filter: at least one character, none of them NUL (MQTT 4.7.3)."""
    if not name or "\0" in name:
        raise ProtocolError("a topic that is empty or holds NUL")
    return name


def publish(name: str, payload: bytes, number: int, *, dup: bool = False) -> bytes:
    """A PUBLISH of QoS 1 with its packet id, of QoS 0 when that is 0 (MQTT 3.3)."""
    return bytes(PublishPacket.build(name, payload, number or None, dup, int(number > 0), False).to_bytes())
