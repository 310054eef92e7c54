"""The topics of a device, and what it says on leaving. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topics:
    """`aemos/devices/{deviceUuid}/...`: all that a device can name."""

    telemetry: str
    notifications: str
    errors: str
    own: str
    """What they begin with."""

    @staticmethod
    def of(device_uuid: str) -> Topics:
        """The topics of one device."""
        own = f"aemos/devices/{device_uuid}/"
        return Topics(own + "telemetry", own + "notifications", own + "errors", own)

    def may_will(self, topic: str) -> bool:
        """Whether a will may name it: own, no wildcard, and not telemetry, since nobody acknowledges a will."""
        named = topic.removeprefix(self.own)
        return named not in ("", topic) and topic != self.telemetry and not any(c in topic for c in "+#\0")


@dataclass(frozen=True, slots=True)
class Will:
    """What the device's other connections hear when this one ends without DISCONNECT (MQTT 3.1.1, 3.1.2.5).

    They hear it as they hear the topic: a will's own QoS and retain flag count for nothing.
    """

    topic: str
    payload: bytes
