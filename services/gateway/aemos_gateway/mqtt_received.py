"""QoS 2 of what devices send: no PUBLISH is stored twice between its PUBREC and its PUBREL. Pure."""

from __future__ import annotations

from collections.abc import Callable

from aemos_gateway.mqtt_frames import PUBREC_HEADER, ProtocolError

MOST_UNRELEASED = 1024
"""Packet ids a session may have waiting for their PUBREL; a client that never releases is closed."""


class Received:
    """A session's packet ids whose PUBREL has not come (MQTT 3.1.1, 4.3.3); it outlives the connection."""

    def __init__(self) -> None:
        self._ids: dict[bytes, Callable[[bytes], None] | None] = {}

    def begin(self, packet_id: bytes, write: Callable[[bytes], None]) -> bool:
        """Whether the PUBLISH is new. A repeated one is answered here: now, or when the first one is stored."""
        if packet_id in self._ids:
            if self._ids[packet_id] is None:
                write(PUBREC_HEADER + packet_id)
            else:
                self._ids[packet_id] = write
            return False
        if len(self._ids) >= MOST_UNRELEASED:
            raise ProtocolError("too many packet ids without PUBREL")
        self._ids[packet_id] = write
        return True

    def settled(self, packet_id: bytes) -> None:
        """It is stored, or can never be: PUBREC to whoever asked last."""
        write = self._ids.get(packet_id)
        self._ids[packet_id] = None
        if write is not None:
            write(PUBREC_HEADER + packet_id)

    def failed(self, packet_id: bytes) -> None:
        """It is not stored, as far as we know: the device's next PUBLISH counts as new."""
        self._ids.pop(packet_id, None)

    def release(self, packet_id: bytes) -> None:
        """PUBREL: the id is free again. One that is still being stored stays."""
        if self._ids.get(packet_id, packet_id) is None:
            del self._ids[packet_id]
