"""Between protobuf and domain."""

from __future__ import annotations

from aemos.v1 import job_pb2, rule_chain_pb2, schedule_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from aemos_scheduler.domain import Instant, Planned, Schedule


def schedule_from_pb(schedule: rule_chain_pb2.Schedule) -> Schedule:
    """What rules says of a chain."""
    return Schedule(
        schedule.rule_chain_id, schedule.organization_id, schedule.cron_expression, schedule.timezone or "UTC"
    )


def job_payload(instant: Instant) -> bytes:
    """One scheduled run; payloads join byte by byte."""
    run = job_pb2.ScheduledRun(
        rule_chain_id=instant.schedule.rule_chain_id,
        organization_id=instant.schedule.organization_id,
        cron_expression=instant.schedule.cron_expression,
        timezone=instant.schedule.timezone,
        planned_at_ms=instant.planned_at_ms,
    )
    return job_pb2.ScheduledRuns(runs=[run]).SerializeToString()


def planned_to_pb(planned: Planned) -> schedule_pb2.ScheduledChain:
    """A schedule for its owner; without `next_at` when it is never due."""
    return schedule_pb2.ScheduledChain(
        rule_chain_id=planned.schedule.rule_chain_id,
        cron_expression=planned.schedule.cron_expression,
        timezone=planned.schedule.timezone,
        next_at=None if planned.due_ms is None else _timestamp(planned.due_ms),
    )


def firing_to_pb(rule_chain_id: int, planned_at_ms: int) -> schedule_pb2.Firing:
    """One firing."""
    return schedule_pb2.Firing(rule_chain_id=rule_chain_id, planned_at=_timestamp(planned_at_ms))


def _timestamp(ms: int) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromMilliseconds(ms)
    return timestamp
