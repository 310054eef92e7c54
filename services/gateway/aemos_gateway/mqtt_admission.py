"""CONNECT: who is it? Answered before any session is touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from aemos_core.errors import AemosError, Kind
from amqtt.codecs_amqtt import encode_string
from amqtt.mqtt.connack import (
    IDENTIFIER_REJECTED,
    NOT_AUTHORIZED,
    SERVER_UNAVAILABLE,
    UNACCEPTABLE_PROTOCOL_VERSION,
)
from amqtt.mqtt.connect import ConnectPacket

from aemos_gateway.device_auth import Device, DeviceAuth
from aemos_gateway.mqtt_frames import CONNECT, ProtocolError, parse

_NAMES = (b"\x00\x04MQTT", b"\x00\x06MQIsdp")
_LEVEL_3_1_1 = 4
_WILL, _WILL_QOS, _WILL_QOS_AND_RETAIN = 0x04, 0x18, 0x38
_USERNAME_AND_PASSWORD, _ONLY_PASSWORD = 0xC0, 0x40


class Refusal(Exception):
    """A CONNECT that is answered with a CONNACK other than 0; `code` is its return code (MQTT 3.1.1, 3.2.2.3)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Topics:
    """`aemos/devices/{deviceUuid}/...`: all that a device can name."""

    def __init__(self, device_uuid: str) -> None:
        self._own = f"aemos/devices/{device_uuid}/"
        self.telemetry = self._own + "telemetry"
        self.notifications = self._own + "notifications"
        self.errors = self._own + "errors"

    def may_will(self, topic: str) -> bool:
        """Whether a will may name it: own, no wildcard, and not telemetry, since nobody acknowledges a will."""
        named = topic.removeprefix(self._own)
        return named not in ("", topic) and topic != self.telemetry and not any(c in topic for c in "+#\0")


@dataclass(frozen=True, slots=True)
class Proven:
    """What a CONNECT asked for, by a device that proved to be one."""

    device: Device
    topics: Topics
    token: bytes
    session_key: str
    """Device uuid and client id: no device can name another one's session."""
    clean: bool
    keep_alive_s: int
    will: tuple[str, bytes] | None
    """Topic and payload that the device's other connections hear when this one ends without DISCONNECT (3.1.2.5), as
    they hear the topic: a will's own QoS and retain flag count for nothing."""


async def prove(body: bytes, auth: DeviceAuth) -> Proven:
    """The device behind a CONNECT. Refusal with its return code; ProtocolError for what is no CONNECT of 3.1.1."""
    packet = _read(body)
    token = packet.password.encode()
    try:
        device = await auth.resolve(token)
    except AemosError as error:
        code = NOT_AUTHORIZED if error.kind is Kind.UNAUTHENTICATED else SERVER_UNAVAILABLE
        raise Refusal(code, error.detail) from None
    if packet.username != device.device_uuid:
        raise Refusal(NOT_AUTHORIZED, "the token is another device's")
    topics = Topics(device.device_uuid)
    if packet.will_flag and not topics.may_will(packet.will_topic):
        raise Refusal(NOT_AUTHORIZED, "a will on a topic that is not the device's")
    return Proven(
        device=device,
        topics=topics,
        token=token,
        session_key=f"{device.device_uuid}/{packet.client_id}",
        clean=packet.clean_session_flag,
        keep_alive_s=packet.keep_alive,
        will=(packet.will_topic, bytes(packet.will_message)) if packet.will_flag else None,
    )


def _read(body: bytes) -> Any:
    name = next((name for name in _NAMES if body.startswith(name)), None)
    if name is None or len(body) < len(name) + 4:
        raise ProtocolError("not MQTT")
    level, flags = body[len(name)], body[len(name) + 1]
    if level != _LEVEL_3_1_1 or name is not _NAMES[0]:
        raise Refusal(UNACCEPTABLE_PROTOCOL_VERSION, "not MQTT 3.1.1")
    _check_flags(flags)
    at = len(name) + 4
    has_client_id = body[at : at + 2] != b"\0\0"
    if not has_client_id:  # then it is given one that no other has (3.1.3.1)
        body = body[:at] + encode_string(uuid4().hex) + body[at + 2 :]
    try:
        packet = parse(ConnectPacket, CONNECT, body)
    except ProtocolError as error:
        raise Refusal(NOT_AUTHORIZED, str(error)) from None
    if "\0" in packet.client_id + (packet.will_topic or ""):
        raise Refusal(NOT_AUTHORIZED, "NUL in the client id or the will's topic")
    if flags & _USERNAME_AND_PASSWORD != _USERNAME_AND_PASSWORD:
        raise Refusal(NOT_AUTHORIZED, "no token")
    if not has_client_id and not packet.clean_session_flag:
        raise Refusal(IDENTIFIER_REJECTED, "a session that is to be kept needs a client id")
    return packet


def _check_flags(flags: int) -> None:
    """MQTT 3.1.1, 3.1.2.3 to 3.1.2.9."""
    if (
        flags & 1
        or flags & _WILL_QOS == _WILL_QOS
        or (not flags & _WILL and flags & _WILL_QOS_AND_RETAIN)
        or flags & _USERNAME_AND_PASSWORD == _ONLY_PASSWORD
    ):
        raise ProtocolError(f"CONNECT flags 0x{flags:02x}")
