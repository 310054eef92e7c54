"""Readings that chains derived: an outbox row of the job's transaction, written to ingest until it has them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from uuid import NAMESPACE_OID, uuid5

from aemos.v1 import data_stream_pb2, data_stream_pb2_grpc
from aemos_core.errors import AemosError, Kind
from aemos_core.outbox import Row

from aemos_rules.domain import DerivedReading
from aemos_rules.effects import RunIds

log = logging.getLogger("aemos.rules")

DERIVED_READINGS = "derived-readings"
_TRY_AGAIN = {Kind.UNAVAILABLE.value, Kind.BUSY.value, Kind.INTERNAL.value}


def derived_rows(derived: Sequence[DerivedReading], _: RunIds) -> list[Row]:
    """Each is stored once by its key, for ingest knows it for a day."""
    request = data_stream_pb2.WriteReadingsRequest(readings=map(_message, derived))
    return [Row(DERIVED_READINGS, 0, request.SerializeToString(), len(derived))]


def _message(derived: DerivedReading) -> data_stream_pb2.NewReading:
    return data_stream_pb2.NewReading(
        organization_id=derived.organization_id,
        sensor_uuid=derived.sensor_uuid,
        variable_name=derived.variable_name,
        value=derived.value.encode(),
        received_at_ms=derived.at_ms,
        trace_context=derived.reading.trace_context if derived.reading else b"",
        message_id=uuid5(NAMESPACE_OID, derived.key).hex,
        depth=derived.depth,
    )


class DerivedReadingSender:
    """Writes them; what a sensor does not take is logged and given up."""

    keep_ms = 0
    unsettled = 1

    def __init__(self, readings: data_stream_pb2_grpc.DataStreamServiceAsyncStub) -> None:
        self._readings = readings

    async def send(self, partition: int, rows: Sequence[Row]) -> None:
        """Returns when they are stored or refused for good; raises ConnectionError to be called again."""
        request = data_stream_pb2.WriteReadingsRequest.FromString(b"".join(row.payload for row in rows))
        try:
            answer = await self._readings.WriteReadings(request)
        except AemosError as error:
            raise ConnectionError(error.detail) from error
        refused = [
            (one, result.refusal)
            for one, result in zip(request.readings, answer.results, strict=True)
            if result.refusal.kind
        ]
        for one, refusal in refused:
            if refusal.kind in _TRY_AGAIN:
                raise ConnectionError(refusal.detail)
            log.warning("derived reading %s of %s refused: %s", one.variable_name, one.sensor_uuid, refusal.detail)

    async def lost_everything(self) -> bool:
        """ingest is not Redis."""
        return False
