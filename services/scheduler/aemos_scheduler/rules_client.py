"""What the scheduler asks of rules."""

from __future__ import annotations

import grpc
from aemos.v1 import rule_chain_pb2, rule_chain_pb2_grpc

from aemos_scheduler.codec import schedule_from_pb
from aemos_scheduler.domain import Schedule

_PAGE = 1_000


class RulesClient:
    """rules, over gRPC."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = rule_chain_pb2_grpc.RuleChainServiceStub(channel)

    async def schedules(self) -> list[Schedule]:
        """Every enabled schedule, all pages; AemosError when one of them cannot be had."""
        found: list[Schedule] = []
        token = ""
        while True:
            request = rule_chain_pb2.ListSchedulesRequest(page_size=_PAGE, page_token=token)
            page = await self._stub.ListSchedules(request, wait_for_ready=True)
            found += map(schedule_from_pb, page.schedules)
            token = page.next_page_token
            if not token:
                return found
