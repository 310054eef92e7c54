"""SchedulerService of the contract: users' schedules, what these mean, runs at once, pauses, and how runs ended."""

from __future__ import annotations

from aemos.v1 import rule_chain_pb2, rule_chain_pb2_grpc, schedule_pb2_grpc
from aemos.v1 import schedule_pb2 as pb
from aemos_core.errors import invalid, not_found, unavailable
from aemos_core.identity import caller
from aemos_core.paging import Page, page_of
from aemos_core.rpc import Context
from aemos_core.times import now_ms, to_timestamp
from aemos_core.timing import Timing, refuse

from aemos_scheduler import codec
from aemos_scheduler.domain import Instant, Planned, Timetable, due_instants
from aemos_scheduler.service import ScheduleCopy
from aemos_scheduler.store import FiringStore
from aemos_scheduler.words import in_words

_MOST_INSTANTS = 100


class SchedulerServicer(schedule_pb2_grpc.SchedulerServiceServicer):
    """Everything is of the caller's organization; another one's chain is NOT_FOUND."""

    def __init__(
        self,
        timetable: Timetable,
        firings: FiringStore,
        rules: rule_chain_pb2_grpc.RuleChainServiceAsyncStub,
        copy: ScheduleCopy,
    ) -> None:
        self._timetable = timetable
        self._firings = firings
        self._rules = rules
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
        instants = _preview(timing, request.count, after)
        return pb.PreviewScheduleResponse(description=in_words(timing), instants=map(to_timestamp, instants))

    async def RunScheduleNow(self, request: pb.RunScheduleNowRequest, context: Context) -> pb.Firing:
        planned = self._get(request.rule_chain_id)
        # What is due goes first: nothing is fired of a chain before what was due earlier is.
        earlier = due_instants(planned, now_ms())
        for at in range(now_ms(), now_ms() + 10):
            fired = await self._firings.fire([*earlier, Instant(planned.schedule, at, manual=True)])
            if any(instant.manual for instant in fired):
                rows, _ = await self._firings.list_firings(request.rule_chain_id, Page(1, at + 1))
                return codec.firing_to_pb(rows[0])
        raise unavailable("it is being run just now")

    async def PauseSchedule(self, request: pb.PauseScheduleRequest, context: Context) -> pb.ScheduledChain:
        return await self._pause(request.rule_chain_id, paused=True)

    async def ResumeSchedule(self, request: pb.ResumeScheduleRequest, context: Context) -> pb.ScheduledChain:
        return await self._pause(request.rule_chain_id, paused=False)

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

    async def _pause(self, chain: int, paused: bool) -> pb.ScheduledChain:
        """In force here when this returns, elsewhere after the hint."""
        who = caller()
        answer = await self._rules.SetSchedulePaused(
            rule_chain_pb2.SetSchedulePausedRequest(
                organization_id=who.organization_id, user_id=who.user_id, rule_chain_id=chain, paused=paused
            )
        )
        await self._copy.take([answer.schedule])
        return codec.planned_to_pb(self._get(chain))


def _preview(timing: Timing, count: int, after_ms: int) -> list[int]:
    """The next instants of a schedule, at most `count` (10 when 0); INVALID names what is wrong with it."""
    if not 0 <= count <= _MOST_INSTANTS:
        raise invalid("count", f"must be 1 to {_MOST_INSTANTS}")
    refuse(timing.check())
    found: list[int] = []
    while len(found) < (count or 10) and (due := timing.next_after(after_ms)) is not None:
        found.append(due)
        after_ms = due
    return found
