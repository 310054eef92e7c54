"""What one MQTT session hears: its granted topics, and at most a window of messages it has not acknowledged."""

from __future__ import annotations

import logging
from functools import partial

from amqtt.session import OutgoingApplicationMessage, Session

from aemos_gateway.downlink import Downlink, Listener
from aemos_gateway.mqtt_connection import Connection

log = logging.getLogger("aemos.gateway.mqtt")

MOST_UNACKNOWLEDGED = 64
"""QoS 1 messages to a session that wait for its PUBACK; what comes beyond them is dropped and counted."""
MOST_QOS = 1
REFUSED = 0x80
_GRANTED = "aemos.granted"


class Hearing:
    """Puts a session's connection among the listeners of the topics it is granted; `hubs` are those that exist.

    Written straight to the connection: amqtt's broadcast would compare each message with every filter of everybody.
    """

    def __init__(self, connection: Connection, device_uuid: str, session: Session, hubs: dict[str, Downlink]) -> None:
        self._connection = connection
        self._device_uuid = device_uuid
        self._session = session
        self._hubs = hubs
        self._granted: dict[str, int] = session.attributes.setdefault(_GRANTED, {})
        self._listeners: dict[str, Listener] = {}
        self._dropped = 0

    def resume(self) -> None:
        """Goes on where the session's last connection ended (MQTT 3.1.1, 4.4)."""
        for message in self._session.inflight_out.values():
            self._connection.write(message.build_publish_packet(dup=True).to_bytes())
        for topic, qos in self._granted.items():
            self._listen(topic, qos)

    def grant(self, topic: str, qos: int) -> int:
        """The return code of a SUBACK: the QoS granted, or 0x80 for what is not this device's to hear."""
        if topic not in self._hubs:
            return REFUSED
        qos = min(qos, MOST_QOS)
        self._granted[topic] = qos
        self._deafen(topic)
        self._listen(topic, qos)
        return qos

    def revoke(self, topic: str) -> None:
        """Hears the topic no more; what was not granted cannot be revoked, which is no error."""
        self._granted.pop(topic, None)
        self._deafen(topic)

    def acknowledged(self, number: int) -> None:
        """A PUBACK; one for what nobody waits for changes nothing."""
        self._session.inflight_out.pop(number, None)

    def lost(self) -> None:
        """The connection is gone."""
        for topic in list(self._listeners):
            self._deafen(topic)
        if self._dropped:
            log.warning("mqtt %s: %d messages to the device were dropped", self._connection.peer, self._dropped)

    def _listen(self, topic: str, qos: int) -> None:
        send, close = partial(self._send, topic, qos), partial(self._connection.end, "an operator asked for it")
        listener = Listener(self._device_uuid, "mqtt", self._connection.peer, send, close)
        self._listeners[topic] = listener
        self._hubs[topic].add(listener)

    def _deafen(self, topic: str) -> None:
        listener = self._listeners.pop(topic, None)
        if listener is not None:
            self._hubs[topic].remove(listener)

    def _send(self, topic: str, qos: int, payload: bytes) -> None:
        waiting = self._session.inflight_out
        if self._connection.congested or (qos and len(waiting) >= MOST_UNACKNOWLEDGED):
            self._drop()
            return
        number = self._session.next_packet_id if qos else None
        message = OutgoingApplicationMessage(number, topic, qos, payload, False)
        if qos:
            waiting[number] = message
        self._connection.write(message.build_publish_packet().to_bytes())

    def _drop(self) -> None:
        if not self._dropped:
            log.warning("mqtt %s: messages to the device are dropped, it does not keep up", self._connection.peer)
        self._dropped += 1
