"""Effects that are only sent, in the transaction of all others: reports to make, and rows of the outbox themselves."""

from __future__ import annotations

from collections.abc import Sequence

from aemos.v1 import job_pb2
from aemos_core.jobs import GENERATE_REPORT
from aemos_core.outbox import Row
from aemos_core.outbox_lane import MOST_IN_BATCH
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_rules.domain import ReportWanted
from aemos_rules.effects import Pending, RunIds


class _Rows(Pending):
    """Nothing is stored but what is to be sent."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    async def write(self, connection: AsyncConnection, runs: RunIds) -> Sequence[Row]:
        return self._rows


class RowApplier:
    """Sends rows."""

    effect = Row

    async def prepare(self, effects: Sequence[Row]) -> Pending:
        """As they are."""
        return _Rows(effects)


class ReportApplier:
    """Has reports made, each by a job of its own: the report's key makes two of them one."""

    effect = ReportWanted

    async def prepare(self, effects: Sequence[ReportWanted]) -> Pending:
        """The jobs' rows."""
        return _Rows([_job(wanted) for wanted in effects])


def _job(wanted: ReportWanted) -> Row:
    fields = {**wanted._asdict(), **wanted.about._asdict()}
    del fields["about"]
    job = job_pb2.GenerateReport(**fields)
    # A lane has a report or two under way: one must not hold up all.
    return Row(GENERATE_REPORT.name, wanted.rule_chain_id % 4, job.SerializeToString(), MOST_IN_BATCH)
