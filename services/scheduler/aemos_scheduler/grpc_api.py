"""SchedulerService over gRPC: decode, call, encode."""

from __future__ import annotations

from aemos.v1 import schedule_pb2 as pb
from aemos.v1 import schedule_pb2_grpc
from aemos_core.paging import page_of
from aemos_core.rpc import Context
from aemos_core.times import now_ms, to_timestamp

from aemos_scheduler import codec
from aemos_scheduler.schedules import Schedules, preview
from aemos_scheduler.store import LOST_MS, FiringStore
from aemos_scheduler.words import in_words


class SchedulerServicer(schedule_pb2_grpc.SchedulerServiceServicer):
    """Schedules and their firings."""

    def __init__(self, schedules: Schedules, firings: FiringStore) -> None:
        self._schedules = schedules
        self._firings = firings

    async def ListScheduledChains(
        self, request: pb.ListScheduledChainsRequest, context: Context
    ) -> pb.ListScheduledChainsResponse:
        page = page_of(request)
        schedules, token = page.cut([codec.planned_to_pb(p) for p in self._schedules.page(page)], "rule_chain_id")
        return pb.ListScheduledChainsResponse(schedules=schedules, next_page_token=token)

    async def GetScheduledChain(self, request: pb.GetScheduledChainRequest, context: Context) -> pb.ScheduledChain:
        return codec.planned_to_pb(self._schedules.get(request.rule_chain_id))

    async def PreviewSchedule(self, request: pb.PreviewScheduleRequest, context: Context) -> pb.PreviewScheduleResponse:
        chain = request.rule_chain_id
        timing = self._schedules.get(chain).schedule.timing if chain else codec.timing_from_pb(request)
        after = request.after.ToMilliseconds() if request.HasField("after") else now_ms()
        instants = preview(timing, request.count, after)
        return pb.PreviewScheduleResponse(description=in_words(timing), instants=map(to_timestamp, instants))

    async def RunScheduleNow(self, request: pb.RunScheduleNowRequest, context: Context) -> pb.Firing:
        return codec.firing_to_pb(await self._schedules.run_now(request.rule_chain_id), LOST_MS)

    async def PauseSchedule(self, request: pb.PauseScheduleRequest, context: Context) -> pb.ScheduledChain:
        return codec.planned_to_pb(await self._schedules.pause(request.rule_chain_id, paused=True))

    async def ResumeSchedule(self, request: pb.ResumeScheduleRequest, context: Context) -> pb.ScheduledChain:
        return codec.planned_to_pb(await self._schedules.pause(request.rule_chain_id, paused=False))

    async def ListFirings(self, request: pb.ListFiringsRequest, context: Context) -> pb.ListFiringsResponse:
        rows, token = await self._schedules.firings(request.rule_chain_id, page_of(request))
        return pb.ListFiringsResponse(firings=[codec.firing_to_pb(r, LOST_MS) for r in rows], next_page_token=token)

    async def FinishFirings(self, request: pb.FinishFiringsRequest, context: Context) -> pb.FinishFiringsResponse:
        await self._firings.finish([codec.end_row(end) for end in request.ends])
        return pb.FinishFiringsResponse()
