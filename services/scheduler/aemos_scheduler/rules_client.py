"""What the scheduler asks of rules."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
from aemos.v1 import rule_chain_pb2 as pb
from aemos.v1 import rule_chain_pb2_grpc

from aemos_scheduler.codec import schedule_from_pb
from aemos_scheduler.domain import Schedule

_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Changes:
    """Schedules that are new or changed, chains that have none any more, and the time to ask from next."""

    schedules: list[Schedule]
    removed: list[int]
    now_ms: int


class RulesClient:
    """rules, over gRPC; AemosError when it does not answer."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = rule_chain_pb2_grpc.RuleChainServiceStub(channel)

    async def pages(self) -> AsyncIterator[Changes]:
        """Every enabled schedule, page by page."""
        token = ""
        while True:
            request = pb.ListSchedulesRequest(page_size=_PAGE, page_token=token)
            page = await self._stub.ListSchedules(request, wait_for_ready=True)
            yield Changes(list(map(schedule_from_pb, page.schedules)), [], page.now_ms)
            token = page.next_page_token
            if not token:
                return

    async def changes(self, since_ms: int) -> Changes | None:
        """What changed since; None when rules no longer knows."""
        found = await self._stub.ListScheduleChanges(pb.ListScheduleChangesRequest(since_ms=since_ms))
        if found.incomplete:
            return None
        return Changes(list(map(schedule_from_pb, found.schedules)), list(found.removed_rule_chain_ids), found.now_ms)

    async def set_paused(self, organization_id: int, user_id: int, rule_chain_id: int, paused: bool) -> Schedule:
        """Pauses or resumes a schedule; what it is now."""
        answer = await self._stub.SetSchedulePaused(
            pb.SetSchedulePausedRequest(
                organization_id=organization_id, user_id=user_id, rule_chain_id=rule_chain_id, paused=paused
            )
        )
        return schedule_from_pb(answer.schedule)
