"""The readings of one MQTT connection: taken, acknowledged once they are durable, and no more of them than a window."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from zlib import crc32

import msgspec
from aemos_core.errors import AemosError, MqttAnswer, internal
from amqtt.codecs_amqtt import encode_string

from aemos_gateway.mqtt_admission import Proven
from aemos_gateway.mqtt_connection import Connection, Hold
from aemos_gateway.mqtt_frames import PUBACK_HEADER, PUBREC_HEADER, ProtocolError, packet_id
from aemos_gateway.readings import Receipt
from aemos_gateway.rejections import beginning
from aemos_gateway.service import MQTT, ONCE, Origin, Uplink

MOST_IN_FLIGHT = 64
"""Readings of one connection that wait for their commit; above it nothing is read until half of them are answered."""
MOST_UNRELEASED = 1024
"""Packet ids of a session that wait for their PUBREL and are known; of a client that never releases, the newest."""

Unreleased = dict[bytes, int]
"""Of a session: packet ids whose PUBREL has not come (MQTT 3.1.1, 4.3.3), and the origin of what was settled under
them. It outlives the connection; what is not known here is still known to ingest, for some time."""


class Telemetry:
    """Hands readings to the uplink and answers each by the error table. Nothing here becomes a task."""

    def __init__(
        self,
        connection: Connection,
        proven: Proven,
        uplink: Uplink,
        unreleased: Unreleased,
        explain: Callable[[bytes], None],
        resend_s: float,
    ) -> None:
        self._connection = connection
        self._topic = encode_string(proven.topics.telemetry)
        self._session = crc32(proven.session_key.encode())
        self._device = proven.device
        self._uplink = uplink
        self._unreleased = unreleased
        self._explain = explain
        self._resend_s = resend_s
        self._owing = False
        """It waits for an acknowledgement that will not come."""
        self._to_try_again = 0
        self._idle: Callable[[], None] | None = None
        self._in_flight = 0

    def publish(self, header: int, body: bytes) -> None:
        """One PUBLISH; ProtocolError unless it is to the device's telemetry."""
        qos, dup = header >> 1 & 3, header & 8 > 0
        if qos == 3 or (dup and not qos):
            raise ProtocolError(f"a PUBLISH that begins with 0x{header:02x}")
        if not body.startswith(self._topic):
            raise ProtocolError("a PUBLISH to another topic than the device's telemetry")
        at = len(self._topic)
        number = packet_id(body[at : at + 2]) if qos else b""
        payload = body[at + len(number) :]
        origin = Origin(crc32(payload, self._session) << 16 | int.from_bytes(number), dup) if qos else ONCE
        receipt = (b"", PUBACK_HEADER, PUBREC_HEADER)[qos] + number
        if dup and qos == 2 and self._unreleased.get(number) == origin.key:
            self._connection.write(receipt)
            return
        self._in_flight += 1
        if self._in_flight > MOST_IN_FLIGHT:
            self._connection.hold(Hold.WINDOW)
        self._put(receipt, payload, origin)

    def when_idle(self, then: Callable[[], None]) -> None:
        """Calls `then` when nothing waits for its answer: now, or later."""
        self._idle = then
        if not self._in_flight:
            then()

    def _put(self, receipt: bytes, payload: bytes, origin: Origin) -> None:
        try:
            answered = partial(self._answered, receipt, payload, origin)
            self._uplink.put(self._device, payload, MQTT, answered, origin)
        except AemosError as error:
            if error.retry_after is None:
                self._refused(receipt, payload, origin, error)
            else:  # it was certainly not written, so it is ours to try again
                self._try_later(receipt, payload, origin, error.retry_after)

    def _answered(self, receipt: bytes, payload: bytes, origin: Origin, result: Receipt | BaseException) -> None:
        if isinstance(result, Receipt):
            self._acknowledge(receipt, origin)
        else:
            self._refused(receipt, payload, origin, result if isinstance(result, AemosError) else internal())

    def _refused(self, receipt: bytes, payload: bytes, origin: Origin, error: AemosError) -> None:
        answer = error.kind.answers.mqtt
        if answer is MqttAnswer.SLOW:
            self._try_later(receipt, payload, origin, error.retry_after or 1)
        elif answer is MqttAnswer.EXPLAIN:
            recorded = partial(self._recorded, receipt, payload, origin, error)
            self._uplink.rejections.record(self._device, MQTT, payload, error, recorded)
        else:
            if answer is MqttAnswer.CLOSE:
                self._uplink.rejections.record(self._device, MQTT, payload, error)
                self._connection.end(f"a reading was refused: {error.reason}")
            self._leave_unanswered(receipt)

    def _recorded(
        self, receipt: bytes, payload: bytes, origin: Origin, error: AemosError, result: BaseException | None
    ) -> None:
        """What can never become valid is acknowledged, and explained on the errors topic, once its refusal is durable;
        before, the device sends again."""
        if result is not None:
            self._leave_unanswered(receipt)
            return
        self._acknowledge(receipt, origin)
        why = {"reason": error.reason, "detail": error.detail, "errors": error.errors, "payload": beginning(payload)}
        self._explain(msgspec.json.encode(why))

    def _acknowledge(self, receipt: bytes, origin: Origin) -> None:
        if receipt.startswith(PUBREC_HEADER):
            self._unreleased[receipt[2:]] = origin.key
            if len(self._unreleased) > MOST_UNRELEASED:
                del self._unreleased[next(iter(self._unreleased))]
        if receipt:
            self._connection.write(receipt)
        self._landed()

    def _leave_unanswered(self, receipt: bytes) -> None:
        if receipt and not self._owing and not self._connection.ending:
            # Clients send an unacknowledged PUBLISH again only on a new connection (MQTT 3.1.1, 4.4).
            delay = self._resend_s * random.uniform(0.5, 1)
            end = partial(self._connection.end, "so that the device sends again what was not stored")
            asyncio.get_running_loop().call_later(delay, end)
            self._owing = True
        self._landed()

    def _try_later(self, receipt: bytes, payload: bytes, origin: Origin, seconds: int) -> None:
        self._to_try_again += 1
        self._connection.hold(Hold.BUSY)
        asyncio.get_running_loop().call_later(seconds, self._try_again, receipt, payload, origin)

    def _try_again(self, receipt: bytes, payload: bytes, origin: Origin) -> None:
        self._to_try_again -= 1
        if not self._to_try_again:
            self._connection.release(Hold.BUSY)
        if self._connection.ending:
            self._leave_unanswered(receipt)
        else:
            self._put(receipt, payload, origin)

    def _landed(self) -> None:
        self._in_flight -= 1
        if self._in_flight < MOST_IN_FLIGHT // 2:
            self._connection.release(Hold.WINDOW)
        if self._idle is not None and not self._in_flight:
            self._idle()
