"""Between protobuf and domain."""

from __future__ import annotations

from functools import lru_cache

from aemos.v1 import job_pb2, rule_chain_pb2, schedule_pb2
from aemos_core.records import AnyRow, message
from aemos_core.times import now_ms, to_timestamp
from aemos_core.timing import Timing
from google.protobuf.timestamp_pb2 import Timestamp

from aemos_scheduler.domain import LOST_MS, Instant, Planned, Schedule
from aemos_scheduler.words import in_words

# Many schedules say the same, and a hundred thousand of them are in memory.
_timing = lru_cache(8_192)(Timing)


def schedule_from_pb(schedule: rule_chain_pb2.Schedule) -> Schedule:
    """What rules says of a chain."""
    timing = _timing(
        schedule.cron_expression,
        schedule.timezone or "UTC",
        schedule.interval_seconds,
        schedule.interval_anchor_ms,
        schedule.run_at_ms,
    )
    return Schedule(
        schedule.rule_chain_id,
        schedule.organization_id,
        timing,
        schedule.misfire_policy,
        schedule.overlap_policy,
        schedule.paused,
        schedule.since_ms,
    )


def timing_from_pb(request: schedule_pb2.PreviewScheduleRequest) -> Timing:
    """A schedule that is only tried out."""
    anchor, run_at = request.interval_anchor.seconds * 1000, request.run_at.seconds * 1000
    return Timing(request.cron_expression, request.timezone or "UTC", request.interval_seconds, anchor, run_at)


def job_payload(instant: Instant) -> bytes:
    """One scheduled run; payloads join byte by byte."""
    run = job_pb2.ScheduledRun(
        rule_chain_id=instant.rule_chain_id,
        organization_id=instant.schedule.organization_id,
        cron_expression=instant.schedule.timing.cron_expression,
        timezone=instant.schedule.timing.timezone,
        planned_at_ms=instant.planned_at_ms,
        manual=instant.manual,
    )
    return job_pb2.ScheduledRuns(runs=[run]).SerializeToString()


def planned_to_pb(planned: Planned) -> schedule_pb2.ScheduledChain:
    """A schedule for its owner; without `next_at` when it is never due."""
    schedule, timing = planned.schedule, planned.schedule.timing
    return schedule_pb2.ScheduledChain(
        rule_chain_id=schedule.rule_chain_id,
        cron_expression=timing.cron_expression,
        timezone=timing.timezone,
        next_at=_moment(planned.due_ms),
        interval_seconds=timing.interval_seconds,
        interval_anchor=to_timestamp(timing.interval_anchor_ms) if timing.interval_seconds else None,
        run_at=_moment(timing.run_at_ms),
        misfire_policy=schedule.misfire,
        overlap_policy=schedule.overlap,
        paused=schedule.paused,
        description=in_words(timing),
    )


def firing_to_pb(row: AnyRow) -> schedule_pb2.Firing:
    """One firing with its end, when it has one."""
    unfinished = "lost" if row.created_at_ms < now_ms() - LOST_MS else "running"
    return message(
        schedule_pb2.Firing,
        row,
        kind="manual" if row.manual else "scheduled",
        fired_at=to_timestamp(row.created_at_ms),
        outcome="queued" if row.queued else row.outcome or unfinished,
    )


def end_without_run(run: Instant | AnyRow, outcome: str) -> schedule_pb2.FiringEnd:
    """An end that no worker reports."""
    return schedule_pb2.FiringEnd(
        rule_chain_id=run.rule_chain_id, planned_at_ms=run.planned_at_ms, finished_at_ms=now_ms(), outcome=outcome
    )


def _moment(ms: int | None) -> Timestamp | None:
    return to_timestamp(ms) if ms else None
