"""What runs have other services do: outbox rows of the job's transaction, sent until the service has answered."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from aemos.v1 import data_stream_pb2, data_stream_pb2_grpc, schedule_pb2, schedule_pb2_grpc
from aemos_core.errors import AemosError, Kind
from aemos_core.outbox import Row

log = logging.getLogger("aemos.rules")

DERIVED_READINGS = "derived-readings"
FIRINGS_FINISHED = "firings-finished"
_TRY_AGAIN = {Kind.UNAVAILABLE.value, Kind.BUSY.value, Kind.INTERNAL.value}

Call: TypeAlias = Callable[[bytes], Awaitable[None]]
"""Makes a request of bytes; AemosError when it is to be made again."""


class ServiceSender:
    """Makes one request of a batch of rows: payloads join byte by byte."""

    keep_ms = 0

    def __init__(self, call: Call) -> None:
        self._call = call

    async def send(self, partition: int, rows: Sequence[Row]) -> None:
        """Returns when it is answered; raises ConnectionError to be called again."""
        try:
            await self._call(b"".join(row.payload for row in rows))
        except AemosError as error:
            raise ConnectionError(error.detail) from error

    async def lost_everything(self) -> bool:
        """A service is not Redis."""
        return False


def writing(ingest: data_stream_pb2_grpc.DataStreamServiceAsyncStub) -> Call:
    """Stores derived readings; what a sensor does not take is logged and given up."""

    async def call(payload: bytes) -> None:
        request = data_stream_pb2.WriteReadingsRequest.FromString(payload)
        answer = await ingest.WriteReadings(request)
        for one, result in zip(request.readings, answer.results, strict=True):
            refusal = result.refusal
            if refusal.kind in _TRY_AGAIN:
                raise AemosError(Kind(refusal.kind), refusal.detail)
            if refusal.kind:
                log.warning("derived reading %s of %s refused: %s", one.variable_name, one.sensor_uuid, refusal.detail)

    return call


def finishing(scheduler: schedule_pb2_grpc.SchedulerServiceAsyncStub) -> Call:
    """Reports the ends of scheduled runs to the scheduler, which counts the first of each run."""

    async def call(payload: bytes) -> None:
        request = schedule_pb2.FinishFiringsRequest.FromString(payload)
        try:
            await scheduler.FinishFirings(request)
        except AemosError as error:
            if error.kind is not Kind.INVALID:
                raise
            log.error("%d ends of runs were refused: %s", len(request.ends), error.detail)

    return call
