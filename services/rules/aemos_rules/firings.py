"""Ends of scheduled runs: an outbox row of the job's transaction, told to the scheduler until it knows."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from aemos.v1 import schedule_pb2, schedule_pb2_grpc
from aemos_core.errors import AemosError, Kind
from aemos_core.outbox import Row

from aemos_rules.effects import RunIds

log = logging.getLogger("aemos.rules")

FIRINGS_FINISHED = "firings-finished"


def end_rows(ends: Sequence[schedule_pb2.FiringEnd], runs: RunIds) -> list[Row]:
    """All are told, with the ids of the runs; the scheduler counts the first of each run."""
    for end in ends:
        run_id = runs.get((end.rule_chain_id, 0, end.planned_at_ms))
        end.run_id = str(run_id) if run_id else ""
    finished = schedule_pb2.FinishFiringsRequest(ends=ends)
    return [Row(FIRINGS_FINISHED, 0, finished.SerializeToString(), len(ends))]


class FinishSender:
    """Reports ends to the scheduler, which counts the first of each run."""

    keep_ms = 0

    def __init__(self, scheduler: schedule_pb2_grpc.SchedulerServiceAsyncStub) -> None:
        self._scheduler = scheduler

    async def send(self, partition: int, rows: Sequence[Row]) -> None:
        """Returns when they are known; raises ConnectionError to be called again."""
        request = schedule_pb2.FinishFiringsRequest.FromString(b"".join(row.payload for row in rows))
        try:
            await self._scheduler.FinishFirings(request)
        except AemosError as error:
            if error.kind is not Kind.INVALID:
                raise ConnectionError(error.detail) from error
            log.error("%d ends of runs were refused: %s", len(request.ends), error.detail)

    async def lost_everything(self) -> bool:
        """The scheduler's database is not Redis."""
        return False
