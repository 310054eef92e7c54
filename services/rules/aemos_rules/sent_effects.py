"""Effects that are only sent, in the transaction of all others; and what other services are asked to do by them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias
from uuid import NAMESPACE_OID, uuid5

from aemos.v1 import data_stream_pb2, data_stream_pb2_grpc, job_pb2, schedule_pb2, schedule_pb2_grpc
from aemos_core.announcements import outbox_row
from aemos_core.errors import AemosError, Kind
from aemos_core.jobs import GENERATE_REPORT
from aemos_core.outbox import Row
from aemos_core.outbox_lane import MOST_IN_BATCH
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_rules.announcements import message_of
from aemos_rules.domain import DerivedReading, Notice, ReportWanted, RunIds
from aemos_rules.effects import Pending

log = logging.getLogger("aemos.rules")

DERIVED_READINGS = "derived-readings"
FIRINGS_FINISHED = "firings-finished"
_TRY_AGAIN = {Kind.UNAVAILABLE.value, Kind.BUSY.value, Kind.INTERNAL.value}

RowsOf: TypeAlias = Callable[[Sequence[Any], RunIds], Sequence[Row]]
Call: TypeAlias = Callable[[Sequence[bytes]], Awaitable[None]]
"""Makes a call of what rows hold; AemosError when it is to be made again."""


class Sent(Pending):
    """Effects of one type that are the rows that they become: nothing is looked at, and nothing stored besides."""

    def __init__(self, rows_of: RowsOf, effects: Sequence[Any]) -> None:
        self._rows_of, self._effects = rows_of, effects

    async def write(self, connection: AsyncConnection, runs: RunIds) -> Sequence[Row]:
        return self._rows_of(self._effects, runs)


def notices(told: Sequence[Notice], _: RunIds) -> list[Row]:
    """Each is told, and told once by its key."""
    return [outbox_row(map(message_of, told))]


def derived_readings(derived: Sequence[DerivedReading], _: RunIds) -> list[Row]:
    """Each is stored once by its key, for ingest knows it for a day. They weigh what readings weigh, one and their KiB,
    and a row no more than one call takes."""
    rows: list[Row] = []
    request, weight = data_stream_pb2.WriteReadingsRequest(), 0
    for reading in map(_new_reading, derived):
        own = 1 + reading.ByteSize() // 1024
        if weight and weight + own > MOST_IN_BATCH:
            rows.append(Row(DERIVED_READINGS, 0, request.SerializeToString(), weight))
            request, weight = data_stream_pb2.WriteReadingsRequest(), 0
        request.readings.append(reading)
        weight += own
    return [*rows, Row(DERIVED_READINGS, 0, request.SerializeToString(), weight)]


def _new_reading(derived: DerivedReading) -> data_stream_pb2.NewReading:
    return data_stream_pb2.NewReading(
        organization_id=derived.organization_id,
        sensor_uuid=derived.sensor_uuid,
        variable_name=derived.variable_name,
        value=derived.value.encode(),
        received_at_ms=derived.at_ms,
        trace_context=derived.reading.trace_context if derived.reading else b"",
        message_id=uuid5(NAMESPACE_OID, derived.key).hex,
        depth=derived.depth,
    )


def reports(wanted: Sequence[ReportWanted], _: RunIds) -> list[Row]:
    """Each is made by a job of its own: the report's key makes two of them one."""
    return [_report_job(each) for each in wanted]


def _report_job(wanted: ReportWanted) -> Row:
    fields = {**wanted._asdict(), **wanted.about._asdict()}
    del fields["about"]
    job = job_pb2.GenerateReport(**fields)
    # A lane has a report or two under way: one must not hold up all.
    return Row(GENERATE_REPORT.name, wanted.rule_chain_id % 4, job.SerializeToString(), MOST_IN_BATCH)


def firing_ends(ends: Sequence[schedule_pb2.FiringEnd], runs: RunIds) -> list[Row]:
    """All are told, with the ids of the runs; the scheduler counts the first of each run."""
    for end in ends:
        run_id = runs.get((end.rule_chain_id, 0, end.planned_at_ms))
        end.run_id = str(run_id) if run_id else ""
    finished = schedule_pb2.FinishFiringsRequest(ends=ends)
    return [Row(FIRINGS_FINISHED, 0, finished.SerializeToString(), len(ends))]


class CallSender:
    """Makes one call of a batch of rows. Nothing is kept: a flush of Redis loses nothing that was called."""

    keep_ms = 0
    spacing = 0.0

    def __init__(self, call: Call) -> None:
        self._call = call

    async def send(self, partition: int, rows: Sequence[Row]) -> None:
        """Returns when it is answered; raises ConnectionError to be called again."""
        try:
            await self._call([row.payload for row in rows])
        except AemosError as error:
            raise ConnectionError(error.detail) from error

    async def lost_everything(self) -> bool:
        """It is no matter."""
        return False


def writing(ingest: data_stream_pb2_grpc.DataStreamServiceAsyncStub) -> Call:
    """Stores derived readings; what a sensor does not take is logged and given up."""

    async def call(payloads: Sequence[bytes]) -> None:
        request = data_stream_pb2.WriteReadingsRequest.FromString(b"".join(payloads))
        answer = await ingest.WriteReadings(request)
        for one, result in zip(request.readings, answer.results, strict=True):
            refusal = result.refusal
            if refusal.kind in _TRY_AGAIN:
                raise AemosError(Kind(refusal.kind), refusal.detail)
            if refusal.kind:
                log.warning("derived reading %s of %s refused: %s", one.variable_name, one.sensor_uuid, refusal.detail)

    return call


def finishing(scheduler: schedule_pb2_grpc.SchedulerServiceAsyncStub) -> Call:
    """Reports the ends of scheduled runs to the scheduler, which counts the first of each run."""

    async def call(payloads: Sequence[bytes]) -> None:
        request = schedule_pb2.FinishFiringsRequest.FromString(b"".join(payloads))
        try:
            await scheduler.FinishFirings(request)
        except AemosError as error:
            if error.kind is not Kind.INVALID:
                raise
            log.error("%d ends of runs were refused: %s", len(request.ends), error.detail)

    return call
