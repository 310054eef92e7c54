"""SchedulerService over gRPC: decode, call, encode."""

from __future__ import annotations

from aemos.v1 import schedule_pb2 as pb
from aemos.v1 import schedule_pb2_grpc
from aemos_core.identity import caller
from aemos_core.paging import page_of
from aemos_core.rpc import Context

from aemos_scheduler.codec import firing_to_pb, planned_to_pb
from aemos_scheduler.domain import Timetable
from aemos_scheduler.store import FiringStore


class SchedulerServicer(schedule_pb2_grpc.SchedulerServiceServicer):
    """Everything here is of the caller's organization; of another one's chain nothing was ever fired."""

    def __init__(self, timetable: Timetable, firings: FiringStore) -> None:
        self._timetable = timetable
        self._firings = firings

    async def ListScheduledChains(
        self, request: pb.ListScheduledChainsRequest, context: Context
    ) -> pb.ListScheduledChainsResponse:
        """See the contract."""
        page = page_of(request)
        planned = self._timetable.of_organization(caller().organization_id, page.after, page.limit + 1)
        schedules, token = page.cut([planned_to_pb(p) for p in planned], "rule_chain_id")
        return pb.ListScheduledChainsResponse(schedules=schedules, next_page_token=token)

    async def ListFirings(self, request: pb.ListFiringsRequest, context: Context) -> pb.ListFiringsResponse:
        """See the contract."""
        chain = request.rule_chain_id
        planned, token = await self._firings.list_firings(caller().organization_id, chain, page_of(request))
        return pb.ListFiringsResponse(firings=[firing_to_pb(chain, at) for at in planned], next_page_token=token)
