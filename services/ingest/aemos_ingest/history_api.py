"""The servicer of history: decode, call, encode."""

from __future__ import annotations

from aemos.v1 import data_stream_pb2, history_pb2, history_pb2_grpc
from aemos_core.identity import caller
from aemos_core.paging import page_of
from aemos_core.rpc import Context

from aemos_ingest import history_codec as codec
from aemos_ingest.history_service import Around, History


async def queried(
    history: History, organization_id: int, request: data_stream_pb2.QueryReadingsRequest
) -> data_stream_pb2.QueryReadingsResponse:
    """Readings or aggregates of an organization."""
    of = codec.of(organization_id, request)
    if not request.aggregate:
        cut = codec.cut(request)
        return codec.readings(*await history.readings(of, cut), cut.limit)
    series = await history.aggregates(of, codec.bounds(request), codec.aggregation(request))
    return codec.aggregates(series)


class HistoryServicer(history_pb2_grpc.HistoryServiceServicer):
    """What was last, and for services what was."""

    def __init__(self, history: History) -> None:
        self._history = history

    async def GetLatestReadings(
        self, request: history_pb2.GetLatestReadingsRequest, context: Context
    ) -> history_pb2.GetLatestReadingsResponse:
        return codec.latest(await self._history.latest(codec.of(caller().organization_id, request)))

    async def GetContext(
        self, request: history_pb2.GetContextRequest, context: Context
    ) -> history_pb2.GetContextResponse:
        around = Around(request.organization_id, request.devices, request.sensor_uuids, request.label)
        return codec.surroundings(await self._history.surroundings(around, page_of(request)))

    async def QueryHistory(
        self, request: history_pb2.QueryHistoryRequest, context: Context
    ) -> data_stream_pb2.QueryReadingsResponse:
        return await queried(self._history, request.organization_id, request.query)
