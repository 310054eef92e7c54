"""SchedulerService of the contract: users' schedules, what these mean, runs at once, pauses, and how runs ended."""

from __future__ import annotations

from aemos.v1 import schedule_pb2 as pb
from aemos.v1 import schedule_pb2_grpc
from aemos_core.errors import not_found, unavailable
from aemos_core.identity import caller
from aemos_core.paging import Page, page_of
from aemos_core.rpc import Context
from aemos_core.times import now_ms, to_timestamp

from aemos_scheduler import codec
from aemos_scheduler.domain import Planned, Timetable, preview
from aemos_scheduler.service import Clock, ScheduleCopy
from aemos_scheduler.store import FiringStore
from aemos_scheduler.words import in_words


class SchedulerServicer(schedule_pb2_grpc.SchedulerServiceServicer):
    """Everything is of the caller's organization; another one's chain is NOT_FOUND."""

    def __init__(self, timetable: Timetable, firings: FiringStore, clock: Clock, copy: ScheduleCopy) -> None:
        self._timetable = timetable
        self._firings = firings
        self._clock = clock
        self._copy = copy

    async def ListScheduledChains(
        self, request: pb.ListScheduledChainsRequest, context: Context
    ) -> pb.ListScheduledChainsResponse:
        page = page_of(request)
        planned = self._timetable.of_organization(caller().organization_id, page.after, page.limit + 1)
        schedules, token = page.cut(list(map(codec.planned_to_pb, planned)), "rule_chain_id")
        return pb.ListScheduledChainsResponse(schedules=schedules, next_page_token=token)

    async def GetScheduledChain(self, request: pb.GetScheduledChainRequest, context: Context) -> pb.ScheduledChain:
        return codec.planned_to_pb(self._get(request.rule_chain_id))

    async def PreviewSchedule(self, request: pb.PreviewScheduleRequest, context: Context) -> pb.PreviewScheduleResponse:
        chain = request.rule_chain_id
        timing = self._get(chain).schedule.timing if chain else codec.timing_from_pb(request)
        after = request.after.ToMilliseconds() if request.HasField("after") else now_ms()
        instants = preview(timing, request.count, after)
        return pb.PreviewScheduleResponse(description=in_words(timing), instants=map(to_timestamp, instants))

    async def RunScheduleNow(self, request: pb.RunScheduleNowRequest, context: Context) -> pb.Firing:
        at = await self._clock.run_now(self._get(request.rule_chain_id))
        rows, _ = await self._firings.list_firings(request.rule_chain_id, Page(1, at + 1))
        return codec.firing_to_pb(rows[0])

    async def PauseSchedule(self, request: pb.PauseScheduleRequest, context: Context) -> pb.ScheduledChain:
        await self._copy.pause(caller(), request.rule_chain_id, paused=True)
        return codec.planned_to_pb(self._get(request.rule_chain_id))

    async def ResumeSchedule(self, request: pb.ResumeScheduleRequest, context: Context) -> pb.ScheduledChain:
        await self._copy.pause(caller(), request.rule_chain_id, paused=False)
        return codec.planned_to_pb(self._get(request.rule_chain_id))

    async def ListFirings(self, request: pb.ListFiringsRequest, context: Context) -> pb.ListFiringsResponse:
        rows, token = await self._firings.list_firings(request.rule_chain_id, page_of(request))
        return pb.ListFiringsResponse(firings=map(codec.firing_to_pb, rows), next_page_token=token)

    async def FinishFirings(self, request: pb.FinishFiringsRequest, context: Context) -> pb.FinishFiringsResponse:
        await self._firings.finish(request.ends)
        return pb.FinishFiringsResponse()

    def _get(self, chain: int) -> Planned:
        planned = self._timetable.get(chain)
        if planned is not None and planned.schedule.organization_id == caller().organization_id:
            return planned
        if not self._timetable.complete:
            raise unavailable("the schedules are still being read")
        raise not_found("schedule")
