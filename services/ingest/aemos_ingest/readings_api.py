"""The servicer of readings: decode, call, encode."""

from __future__ import annotations

from aemos.v1 import data_stream_pb2 as pb
from aemos.v1 import data_stream_pb2_grpc
from aemos_core.identity import caller
from aemos_core.rpc import Context, carried_trace

from aemos_ingest import codec
from aemos_ingest.history_service import History
from aemos_ingest.readings_service import Readings


class DataStreamServicer(data_stream_pb2_grpc.DataStreamServiceServicer):
    """Readings."""

    def __init__(self, readings: Readings, history: History) -> None:
        self._readings = readings
        self._history = history

    async def WriteReadings(self, request: pb.WriteReadingsRequest, context: Context) -> pb.WriteReadingsResponse:
        outcomes = await self._readings.write(request.readings, carried_trace(context))
        return pb.WriteReadingsResponse(results=map(codec.write_result, outcomes))

    async def QueryReadings(self, request: pb.QueryReadingsRequest, context: Context) -> pb.QueryReadingsResponse:
        return await self._history.query(caller().organization_id, request)
