"""The way of readings into AEMOS, the same for every protocol edge."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

from aemos.v1 import data_stream_pb2, data_stream_pb2_grpc
from aemos_core import telemetry
from aemos_core.batching import Batcher, resolve
from aemos_core.errors import AemosError, FieldError, Kind, internal, unavailable
from opentelemetry.trace import Span

from aemos_gateway.device_auth import Device
from aemos_gateway.presence import Presence
from aemos_gateway.quota import Quota
from aemos_gateway.readings import Reading, Receipt, Sent, decode, in_batch
from aemos_gateway.rejections import Rejections

log = logging.getLogger("aemos.gateway")

MQTT = "mqtt"
"""The one protocol whose devices are connected while they send."""
WRITE_SECONDS = 10.0
PATIENCE_SECONDS = 5.0
"""A reading that waited for longer was not sent to ingest, and is refused."""
MOST_WAITING = 50_000
"""What may wait for ingest in one gateway process, by `_weight`; more is refused as unavailable."""
MOST_PER_CALL = 2_000
"""By `_weight`: about 2.5 MB, well under what gRPC takes."""
_KEY_BITS = 48

Done = Callable[[Receipt | BaseException], None]
Results = Sequence[data_stream_pb2.WriteResult]


class Origin(NamedTuple):
    """Which message of its protocol a payload came in: `key` (0 to 2**48 - 1) is the same when it is sent again.

    When it may be a repetition, only of what arrived between `after_ms` and `before_ms`; 0 is ten minutes ago, and now.
    """

    key: int = 0
    maybe_repeated: bool = False
    after_ms: int = 0
    before_ms: int = 0


ONCE = Origin()
"""What the protocol never repeats by itself."""


class Uplink:
    """Hands readings to ingest in natural batches. A call whose outcome is unknown is never repeated."""

    def __init__(
        self,
        data_streams: data_stream_pb2_grpc.DataStreamServiceAsyncStub,
        quota: Quota,
        rejections: Rejections,
        presence: Presence,
    ) -> None:
        self.presence = presence
        """What an edge knows of connections goes there."""
        self.rejections = rejections
        """What an edge refuses goes there; of an MQTT message before its PUBACK."""
        self._data_streams = data_streams
        self._quota = quota
        self._groups = 0
        self._batcher: Batcher[Sequence[Reading], Results] = Batcher(
            self._write, max_batch=MOST_PER_CALL, max_waiting=MOST_WAITING, weight=_weight, patience=PATIENCE_SECONDS
        )

    def put(
        self,
        device: Device,
        payload: bytes,
        protocol: str,
        done: Done,
        origin: Origin = ONCE,
        *,
        is_partial: bool = False,
    ) -> None:
        """Takes what one request brought; `done` is called once, on the loop: the Receipt after the commit, or the
        AemosError. Of a list all is stored or, unless it is partial, nothing.

        Raises the AemosError itself when the payload is no reading, too many come, or too much is waiting. What is no
        reading costs work too, and counts as one, and one more for each KiB.
        """
        if protocol != MQTT:
            self.presence.heard(device.device_id)
        now = time.monotonic()
        self._quota.check(device.device_id, device.organization_id, now)
        try:
            sent = decode(payload, partial=is_partial)
        except AemosError:
            self._quota.spend(device.device_id, device.organization_id, 1 + len(payload) // 1024, now)
            raise
        span = telemetry.start_trace(telemetry.SPAN_RECEIVE, {"protocol": protocol, "device": device.device_uuid})
        group = self._group() if len(sent.readings) > 1 and not is_partial else 0
        for reading in sent.readings:
            reading.token_id, reading.group = device.token_id, group
        if span is not None:  # of each reading it would cost as much as all of them
            sent.readings[0].trace_context = telemetry.carry(span)
        if origin.key:
            _mark(sent.readings, origin)
        self._batcher.put(sent.readings, partial(_finish, sent, span, done, is_partial))
        self._quota.spend(device.device_id, device.organization_id, len(sent.readings), now)

    async def write(
        self, device: Device, payload: bytes, protocol: str, origin: Origin = ONCE, *, is_partial: bool = False
    ) -> Receipt:
        """As `put`, and waits for the commit."""
        future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self.put(device, payload, protocol, partial(resolve, future), origin, is_partial=is_partial)
        return await future

    async def run(self, stop: asyncio.Event) -> None:
        """Ends when what was taken is answered."""
        await stop.wait()
        await self._batcher.drain()
        await self.rejections.drain()

    def _group(self) -> int:
        """A number that no other list of the same call has."""
        self._groups = self._groups % MOST_WAITING + 1
        return self._groups

    async def _write(self, payloads: list[Sequence[Reading]]) -> list[Results]:
        readings = list(chain.from_iterable(payloads))
        contexts = (r.trace_context for r in readings)
        with telemetry.batch(telemetry.SPAN_WRITE, contexts, len(readings)):
            request = data_stream_pb2.WriteReadingsRequest(readings=readings)
            answer = await self._data_streams.WriteReadings(request, timeout=WRITE_SECONDS)
        if len(answer.results) != len(readings):
            raise unavailable("ingest answered for other readings")
        results = iter(answer.results)
        return [list(islice(results, len(payload))) for payload in payloads]


def _mark(readings: Sequence[Reading], origin: Origin) -> None:
    for index, reading in enumerate(readings):
        reading.origin_key = origin.key + (index << _KEY_BITS)
        if origin.maybe_repeated:
            reading.maybe_repeated = True
            reading.repeats_after_ms, reading.repeats_before_ms = origin.after_ms, origin.before_ms


def _weight(readings: Sequence[Reading]) -> int:
    """Readings, and KiB of what they say: neither many nor large ones make a call too large. A character of a name is
    four bytes at most."""
    return sum(
        1 + (len(r.value) + 4 * (len(r.variable_name) + len(r.message_id) + len(r.sensor_uuid))) // 1024
        for r in readings
    )


def _finish(sent: Sent, span: Span | None, done: Done, is_partial: bool, results: Results | BaseException) -> None:
    if span is not None:
        span.end()
    if isinstance(results, BaseException):
        done(results if isinstance(results, AemosError) else unavailable("the reading may not be stored"))
        return
    try:
        outcome: Receipt | AemosError = _outcome(sent, is_partial, results)
    except ValueError as error:
        log.error("ingest answered with what is not understood", exc_info=error)
        outcome = internal()
    done(outcome)


def _outcome(sent: Sent, is_partial: bool, results: Results) -> Receipt | AemosError:
    stored = [(reading, r) for reading, r in zip(sent.readings, results, strict=True) if r.id]
    if len(stored) == len(results):
        return Receipt(stored, sent.is_list, sent.refused)
    if not sent.is_list:
        return _refused(results[0].refusal)
    places = sent.places or list(map(str, range(len(results))))
    refusals = [(place, r.refusal) for place, r in zip(places, results, strict=True) if r.refusal.kind]
    errors = [*sent.refused, *(_mistake(place, refusal) for place, refusal in refusals)]
    if is_partial and stored:
        return Receipt(stored, sent.is_list, errors)
    first = refusals[0][1]
    return in_batch(errors) if Kind(first.kind) is Kind.INVALID else _refused(first, errors)


def _mistake(place: str, refusal: data_stream_pb2.Refusal) -> FieldError:
    return FieldError(f"{place}.{refusal.loc}".rstrip("."), refusal.detail)


def _refused(refusal: data_stream_pb2.Refusal, errors: Sequence[FieldError] = ()) -> AemosError:
    own = [FieldError(refusal.loc, refusal.detail)] if refusal.loc else []
    return AemosError(Kind(refusal.kind), refusal.detail, reason=refusal.reason, errors=errors or own)
