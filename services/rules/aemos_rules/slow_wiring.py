"""Assembles what is slow, reports and scheduled chains that read sensors: never in a rule worker."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from aemos.v1 import history_pb2_grpc
from aemos_core.broker import WakeRedisBroker
from aemos_core.database import Database
from aemos_core.jobs import GENERATE_REPORT, RUN_READING_CHAINS
from aemos_core.names import RULE_CHAINS_CHANGED
from aemos_core.outbox import Outbox
from aemos_core.process import Component
from aemos_core.redis_link import RedisClient, Subscriber
from aemos_core.sweeping import Sweep, kept_for
from aemos_core.worker import JobWorker, actor_on_loop, is_outage, with_receipt

from aemos_rules import tables
from aemos_rules.appliers import Parts
from aemos_rules.report_job import AT_ONCE, ReportJob
from aemos_rules.scheduled_runs import ScheduledRuns
from aemos_rules.sensor_source import SensorSource
from aemos_rules.settings import RulesSettings

_THREADS = 4


def slow_jobs(
    settings: RulesSettings,
    database: Database,
    redis: RedisClient,
    jobs_redis: RedisClient,
    ingest: grpc.aio.Channel,
    outbox: Outbox,
    broker: WakeRedisBroker,
) -> Sequence[Component]:
    """The components of the queue of slow jobs."""
    source = SensorSource(history_pb2_grpc.HistoryServiceStub(ingest))
    parts = Parts(database, redis, outbox)
    index = parts.index
    runs = ScheduledRuns(index, parts.effects, source)
    report_job = ReportJob(source, database, outbox, settings.report_days)
    actor_on_loop(broker, GENERATE_REPORT, with_receipt(jobs_redis, report_job.generate_report))
    actor_on_loop(broker, RUN_READING_CHAINS, with_receipt(jobs_redis, runs.run_chains), outlasts=is_outage)
    subscriber = Subscriber(redis, {RULE_CHAINS_CHANGED: index.forget}, index.forget)
    expire = Sweep(60, kept_for(database, tables.report.c.expires_at_ms, 0, AT_ONCE), "reports stay")
    worker = JobWorker(broker, [GENERATE_REPORT.queue_name()], threads=_THREADS)
    return [worker, index, parts.activities, subscriber, expire]
