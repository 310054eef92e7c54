"""What every protocol edge does: find the device behind a token, hand a reading over, await its commit."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from aemos.v1 import data_stream_pb2, data_stream_pb2_grpc, identity_pb2, identity_pb2_grpc
from aemos_core import telemetry
from aemos_core.batching import Batcher
from aemos_core.errors import AemosError, FieldError, Kind, unauthenticated, unavailable
from opentelemetry.trace import Span

from aemos_gateway.readings import Reading, Stored, decode_reading

log = logging.getLogger("aemos.gateway")

_POLL_SECONDS = 5.0
_KNOWN_SECONDS = 300.0
_UNKNOWN_SECONDS = 5.0
_MOST_TOKENS = 200_000
_LONGEST_TOKEN = 512
WRITE_SECONDS = 10.0
MOST_WAITING = 20_000
"""Readings that may wait for ingest in one gateway process; more are refused as unavailable."""
MOST_PER_CALL = 1_000


@dataclass(frozen=True, slots=True)
class Device:
    """The device that a token proved."""

    token_id: int
    organization_id: int
    device_id: int
    device_uuid: str


class DeviceAuth:
    """A component: finds the device behind a token, from memory when it was asked before.

    `registry:changed` and a poll every 5 s drop what changed, so a revoked token works no longer than that.
    """

    def __init__(self, identity: identity_pb2_grpc.IdentityServiceAsyncStub) -> None:
        self._identity = identity
        self._known: dict[bytes, tuple[Device | None, float]] = {}
        self._poll_now = asyncio.Event()

    def known(self, token: bytes) -> Device | None:
        """The device, only if it is in memory: for hot paths, without a hash or a wait."""
        entry = self._known.get(token)
        return entry[0] if entry is not None and entry[1] > time.monotonic() else None

    async def resolve(self, token: bytes) -> Device:
        """The device; UNAUTHENTICATED when the token proves none."""
        entry = self._known.get(token)
        if entry is None or entry[1] <= time.monotonic():
            entry = await self._ask(token)
        if entry[0] is None:
            raise unauthenticated()
        return entry[0]

    def look_again(self, _: bytes = b"") -> None:
        """The registry changed, or we may have missed that it did."""
        self._poll_now.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Drops what changed."""
        since = 0
        while not stop.is_set():
            self._poll_now.clear()
            try:
                request = identity_pb2.ListRegistryChangesRequest(since_ms=since)
                answer = await self._identity.ListRegistryChanges(request, wait_for_ready=True)
                self._forget(set(answer.device_ids))
                since = answer.now_ms
            except AemosError as error:
                log.warning("registry changes: %s", error.detail)
            await self._next_poll(stop)

    async def _next_poll(self, stop: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, self._poll_now)]
        await asyncio.wait(waits, timeout=_POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for pending in waits:
            pending.cancel()

    async def _ask(self, token: bytes) -> tuple[Device | None, float]:
        if not 0 < len(token) <= _LONGEST_TOKEN:
            raise unauthenticated()
        request = identity_pb2.ResolveDeviceTokenRequest(token_sha256=hashlib.sha256(token).digest())
        device, seconds = None, _UNKNOWN_SECONDS
        try:
            found = await self._identity.ResolveDeviceToken(request)
            device = Device(found.token_id, found.organization_id, found.device_id, found.device_uuid)
            seconds = _KNOWN_SECONDS
        except AemosError as error:
            if error.kind is not Kind.UNAUTHENTICATED:
                raise
        if len(self._known) >= _MOST_TOKENS:
            self._known.clear()
        self._known[token] = entry = (device, time.monotonic() + seconds)
        return entry

    def _forget(self, device_ids: set[int]) -> None:
        if not device_ids:
            return
        stale = [token for token, (device, _) in self._known.items() if device and device.device_id in device_ids]
        for token in stale:
            del self._known[token]


Done = Callable[[Stored | BaseException], None]


class Uplink:
    """Hands readings to ingest in natural batches. A call whose outcome is unknown is never repeated."""

    def __init__(self, data_streams: data_stream_pb2_grpc.DataStreamServiceAsyncStub) -> None:
        self._data_streams = data_streams
        self._batcher: Batcher[data_stream_pb2.NewReading, data_stream_pb2.WriteResult] = Batcher(
            self._write, max_batch=MOST_PER_CALL, max_waiting=MOST_WAITING
        )

    def put(self, device: Device, payload: bytes, protocol: str, done: Done) -> None:
        """Takes one reading; `done` is called once, on the loop: Stored after the commit, or the AemosError.

        Raises the AemosError itself when the payload is no reading or too much is waiting.
        """
        reading = decode_reading(payload)
        span = telemetry.start_trace(telemetry.SPAN_RECEIVE, {"protocol": protocol, "device": device.device_uuid})
        message = data_stream_pb2.NewReading(
            token_id=device.token_id,
            variable_name=reading.variable_name,
            value=reading.value,
            received_at_ms=reading.received_at_ms,
            trace_context=telemetry.carry(span),
            sensor_uuid=reading.sensor_uuid,
        )
        self._batcher.put(message, partial(_finish, reading, span, done))

    async def write(self, device: Device, payload: bytes, protocol: str) -> Stored:
        """As `put`, and waits for the commit."""
        future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        self.put(device, payload, protocol, partial(_resolve, future))
        return await future

    async def run(self, stop: asyncio.Event) -> None:
        """Ends when what was taken is answered."""
        await stop.wait()
        await self._batcher.drain()

    async def _write(self, readings: list[data_stream_pb2.NewReading]) -> list[data_stream_pb2.WriteResult]:
        contexts = (r.trace_context for r in readings)
        with telemetry.batch(telemetry.SPAN_WRITE, contexts, len(readings)):
            request = data_stream_pb2.WriteReadingsRequest(readings=readings)
            answer = await self._data_streams.WriteReadings(request, timeout=WRITE_SECONDS)
        if len(answer.results) != len(readings):
            raise unavailable("ingest answered for other readings")
        return list(answer.results)


def _finish(
    reading: Reading,
    span: Span | None,
    done: Done,
    result: data_stream_pb2.WriteResult | BaseException,
) -> None:
    if span is not None:
        span.end()
    if isinstance(result, BaseException):
        done(result if isinstance(result, AemosError) else unavailable("the reading may not be stored"))
    elif result.id:
        done(Stored(result.id, result.telemetry_data_id, result.sensor_uuid, reading))
    else:
        done(_refused(result.refusal))


def _refused(refusal: data_stream_pb2.Refusal) -> AemosError:
    errors = [FieldError(refusal.loc, refusal.detail)] if refusal.loc else []
    return AemosError(Kind(refusal.kind), refusal.detail, reason=refusal.reason, errors=errors)


def _resolve(future: asyncio.Future[Stored], result: Stored | BaseException) -> None:
    with suppress(asyncio.InvalidStateError):  # the client went away meanwhile
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
