"""Effects that are only sent, in the transaction of all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from aemos.v1 import job_pb2
from aemos_core.jobs import GENERATE_REPORT
from aemos_core.outbox import Row
from aemos_core.outbox_lane import MOST_IN_BATCH
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_rules.domain import ReportWanted
from aemos_rules.effects import Pending, RunIds

RowsOf: TypeAlias = Callable[[Sequence[Any], RunIds], list[Row]]


class SentApplier:
    """Sends effects of one type as the rows that they become."""

    def __init__(self, effect: type[Any], rows_of: RowsOf) -> None:
        self.effect = effect
        self._rows_of = rows_of

    async def prepare(self, effects: Sequence[Any]) -> Pending:
        """Nothing is looked at, and nothing stored besides."""
        return _Sent(self._rows_of, effects)


class _Sent(Pending):
    def __init__(self, rows_of: RowsOf, effects: Sequence[Any]) -> None:
        self._rows_of, self._effects = rows_of, effects

    async def write(self, connection: AsyncConnection, runs: RunIds) -> Sequence[Row]:
        return self._rows_of(self._effects, runs)


def report_rows(wanted: Sequence[ReportWanted], _: RunIds) -> list[Row]:
    """Each is made by a job of its own: the report's key makes two of them one."""
    return [_job(each) for each in wanted]


def _job(wanted: ReportWanted) -> Row:
    fields = {**wanted._asdict(), **wanted.about._asdict()}
    del fields["about"]
    job = job_pb2.GenerateReport(**fields)
    # A lane has a report or two under way: one must not hold up all.
    return Row(GENERATE_REPORT.name, wanted.rule_chain_id % 4, job.SerializeToString(), MOST_IN_BATCH)
