"""What one MQTT session hears: its granted topics, and at most a window of messages it has not acknowledged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from aemos_core.names import device_room
from aemos_core.notification_log import Logged, LogId

from aemos_gateway import mqtt_frames as frames
from aemos_gateway.device_auth import Device
from aemos_gateway.downlink import Downlink, Listener
from aemos_gateway.mqtt_connection import Connection
from aemos_gateway.mqtt_sessions import Kept
from aemos_gateway.mqtt_topics import Topics

log = logging.getLogger("aemos.gateway.mqtt")

MOST_UNACKNOWLEDGED = 64
"""QoS 1 messages to a session that wait for its PUBACK. Notifications beyond them come from the log when there is room;
what is in no log is dropped and counted."""
MOST_QOS = 1
REFUSED = 0x80
_LOGGED, _UNLOGGED = 1, 0x8000
"""First packet ids of notifications, and of what is in no log: the former follow from the place in the log, so what is
sent again has the packet id it had (MQTT 3.1.1, 4.4)."""


class Numbers:
    """Packet ids from `first` on, half of them all, in a circle."""

    def __init__(self, first: int, following: int = 0) -> None:
        self._first = first
        self.following = following or first

    def next(self) -> int:
        """The next one."""
        number, self.following = self.following, self.following + 1
        if self.following == self._first + _UNLOGGED - 1:
            self.following = self._first
        return number


class Hearing:
    """Puts a session's connection among the listeners of the topics it is granted; `hubs` are those that exist.

    While it is level with the notification log, notifications go straight to the connection; when its window is full it
    falls behind, and `behind` is called once it has room again.
    """

    def __init__(
        self,
        connection: Connection,
        device: Device,
        hubs: dict[str, Downlink],
        reached: Callable[[], LogId],
        behind: Callable[[Hearing], None],
    ) -> None:
        self._connection = connection
        self._device_uuid = device.device_uuid
        self.organization_id = device.organization_id
        self.room = device_room(device.device_uuid)
        self._hubs = hubs
        self._reached = reached
        self._behind = behind
        self._granted: dict[str, int] = {}
        self._listeners: dict[str, Listener] = {}
        self._notifications = Topics.of(device.device_uuid).notifications
        self._unacknowledged: dict[int, LogId] = {}
        """Packet id to the place before the notification; in their order."""
        self._unlogged: set[int] = set()
        self._logged_numbers, self._unlogged_numbers = Numbers(_LOGGED), Numbers(_UNLOGGED)
        self._maybe_repeated = 0
        self._level = True
        self._dropped = 0
        self.place = reached()
        self.overtaken = False

    def resume(self, kept: Kept) -> None:
        """Goes on where the session's last connection ended."""
        self.place = kept.place
        self._logged_numbers = Numbers(_LOGGED, kept.number)
        self._maybe_repeated = MOST_UNACKNOWLEDGED
        self._level = False
        for topic, qos in kept.granted.items():
            self._listen(topic, qos)
        self._behind(self)

    def kept(self) -> Kept:
        """What the session's next connection is to go on with."""
        if self._unacknowledged:
            number, place = next(iter(self._unacknowledged.items()))
        else:
            number, place = self._logged_numbers.following, self._reached() if self._level else self.place
        return Kept(dict(self._granted), place, number)

    def grant(self, topic: str, qos: int) -> int:
        """The return code of a SUBACK: the QoS granted, or 0x80 for what is not this device's to hear."""
        if topic not in self._hubs:
            return REFUSED
        qos = min(qos, MOST_QOS)
        if topic == self._notifications and not self._granted.get(topic):
            self.is_level(self._reached())
        self._deafen(topic)
        self._listen(topic, qos)
        return qos

    def revoke(self, topic: str) -> None:
        """Hears the topic no more; what was not granted cannot be revoked, which is no error."""
        self._granted.pop(topic, None)
        self._deafen(topic)

    def acknowledged(self, number: int) -> bool:
        """A PUBACK: whether it was waited for, and is of a notification."""
        is_logged = self._unacknowledged.pop(number, None) is not None
        self._unlogged.discard(number)
        if not self._level and self._waiting <= MOST_UNACKNOWLEDGED // 2:
            self._behind(self)
        return is_logged

    def lost(self) -> None:
        """The connection is gone."""
        for topic in list(self._listeners):
            self._deafen(topic)
        if self._dropped:
            log.warning("mqtt %s: %d messages to the device were dropped", self._connection.peer, self._dropped)

    @property
    def _waiting(self) -> int:
        return len(self._unacknowledged) + len(self._unlogged)

    # Behind of mqtt_backlog.

    @property
    def takes_more(self) -> bool:
        """It is behind, and has room for another message."""
        return (
            bool(self._granted.get(self._notifications) and self._listeners)
            and not self._level
            and self._waiting < MOST_UNACKNOWLEDGED
        )

    def missed(self, entry: Logged) -> None:
        """The next of the log."""
        self._send_logged(entry.notification.encode(), entry.id)

    def is_level(self, place: LogId) -> None:
        """Nothing is missed any more."""
        self._level, self._maybe_repeated = True, 0
        self.place = place

    # What the hubs call.

    def _listen(self, topic: str, qos: int) -> None:
        self._granted[topic] = qos
        send, close = partial(self._send, topic, qos), partial(self._connection.end, "an operator asked for it")
        listener = Listener(self._device_uuid, "mqtt", self._connection.peer, send, close)
        self._listeners[topic] = listener
        self._hubs[topic].add(listener)

    def _deafen(self, topic: str) -> None:
        listener = self._listeners.pop(topic, None)
        if listener is not None:
            self._hubs[topic].remove(listener)

    def _send(self, topic: str, qos: int, payload: bytes, place: LogId | None) -> None:
        if qos and place is not None:
            self._send_live(payload, place)
        elif self._connection.congested or (qos and self._waiting >= MOST_UNACKNOWLEDGED):
            self._drop()
        else:
            number = self._unlogged_numbers.next() if qos else 0
            if qos:
                self._unlogged.add(number)
            self._connection.write(frames.publish(topic, payload, number))

    def _send_live(self, payload: bytes, place: LogId) -> None:
        if self._level and self._waiting < MOST_UNACKNOWLEDGED:
            self._send_logged(payload, place)
        else:
            self.overtaken = True
            if self._level:
                self._level, self.place = False, place.before()

    def _send_logged(self, payload: bytes, place: LogId) -> None:
        number = self._logged_numbers.next()
        self._unacknowledged[number], self.place = place.before(), place
        self._connection.write(frames.publish(self._notifications, payload, number, dup=self._maybe_repeated > 0))
        self._maybe_repeated -= self._maybe_repeated > 0

    def _drop(self) -> None:
        if not self._dropped:
            log.warning("mqtt %s: messages to the device are dropped, it does not keep up", self._connection.peer)
        self._dropped += 1
