"""What devices hear: notifications from Redis, handed to whoever holds the device's connection here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aemos_core.names import DEVICE_CONNECTIVITY, device_room
from aemos_core.notification_log import LogId, Published

_ROOM_PREFIX = device_room("")


def is_for_devices(event: str) -> bool:
    """Whether devices hear of it: that it is connected itself, a device knows."""
    return event != DEVICE_CONNECTIVITY


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """A connection of a device that wants to hear.

    `send` gets the notification's JSON and its place in the log, None when it is in none, and must not block.
    """

    device_uuid: str
    protocol: str
    peer: str
    send: Callable[[bytes, LogId | None], None]
    close: Callable[[], None]


class Downlink:
    """The connections of this process by device, and the one way to them."""

    def __init__(self) -> None:
        self._listeners: dict[str, list[Listener]] = {}

    def add(self, listener: Listener) -> None:
        """From now on the connection hears its device's notifications."""
        self._listeners.setdefault(listener.device_uuid, []).append(listener)

    def remove(self, listener: Listener) -> None:
        """The connection hears no more; removing twice is the same as once."""
        left = [known for known in self._listeners.get(listener.device_uuid, ()) if known is not listener]
        if left:
            self._listeners[listener.device_uuid] = left
        else:
            self._listeners.pop(listener.device_uuid, None)

    def of(self, device_uuid: str) -> list[Listener]:
        """The connections of a device."""
        return list(self._listeners.get(device_uuid, ()))

    def all(self) -> list[Listener]:
        """Every connection, in the order of their devices."""
        return [listener for uuid in sorted(self._listeners) for listener in self._listeners[uuid]]

    def send(self, device_uuid: str, payload: bytes, place: LogId | None = None) -> int:
        """Hands a payload to every connection of a device; how many there are."""
        listeners = self.of(device_uuid)
        for listener in listeners:
            listener.send(payload, place)
        return len(listeners)

    def deliver(self, published: Published) -> None:
        """A notification of the feed: to the devices whose rooms it names."""
        if not is_for_devices(published.event):
            return
        for room in published.rooms:
            if room.startswith(_ROOM_PREFIX):
                self.send(room.removeprefix(_ROOM_PREFIX), published.notification, published.id)
