"""Assembles the rules service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aemos.v1 import device_pb2_grpc, sensor_pb2_grpc
from aemos_core.jobs import GENERATE_REPORT, RUN_READING_CHAINS
from aemos_core.names import REGISTRY_CHANGED, RULE_CHAINS_CHANGED
from aemos_core.process import Component
from aemos_core.redis_link import Subscriber
from aemos_core.rpc import grpc_server, remote_verifier
from aemos_core.sweeping import Sweep, kept_for
from aemos_core.worker import JobWorker, never

from aemos_rules import tables
from aemos_rules.alarm_api import AlarmServicer
from aemos_rules.appliers import Parts
from aemos_rules.base_wiring import Base, connected
from aemos_rules.chain_api import RuleChainServicer
from aemos_rules.chain_check import ChainCheck
from aemos_rules.contexts import Contexts
from aemos_rules.made_up import MadeUpReadings
from aemos_rules.report_api import ReportServicer
from aemos_rules.report_job import AT_ONCE, ReportJob
from aemos_rules.run_api import ChainRunServicer
from aemos_rules.scheduled_runs import ScheduledRuns
from aemos_rules.sensor_source import SensorSource
from aemos_rules.settings import RulesSettings
from aemos_rules.state_api import DeviceStateServicer

_THREADS = 4


@asynccontextmanager
async def wire(settings: RulesSettings) -> AsyncIterator[Sequence[Component]]:
    """Opens what the rules service needs, in order; closes it in reverse."""
    async with connected(settings) as base:
        database, outbox = base.database, base.outbox
        sensors, contexts = sensor_pb2_grpc.SensorServiceStub(base.ingest), Contexts(database, base.history)
        check, made_up = ChainCheck(database, sensors), MadeUpReadings(sensors, base.history)
        servicers = [
            RuleChainServicer(database, outbox, check),
            DeviceStateServicer(database, outbox, device_pb2_grpc.DeviceServiceStub(base.ingest)),
            AlarmServicer(database, outbox),
            ReportServicer(database),
            ChainRunServicer(database, base.redis, check, made_up, contexts, settings.rules_partitions),
        ]
        registry = Subscriber(base.redis, {REGISTRY_CHANGED: contexts.forget}, contexts.forget)
        async with grpc_server(settings, "rules", remote_verifier(base.ingest), servicers) as server:
            yield [server, outbox, base.receipts, registry, *_slow_jobs(settings, base)]


def _slow_jobs(settings: RulesSettings, base: Base) -> Sequence[Component]:
    """The components of the queue of what is slow, reports and scheduled chains that read sensors: never in a rule
    worker."""
    database, source = base.database, SensorSource(base.history)
    parts = Parts(database, base.redis, base.outbox)
    base.take(GENERATE_REPORT, ReportJob(source, database, base.outbox, settings.report_days).generate_report, never)
    base.take(RUN_READING_CHAINS, ScheduledRuns(parts, source).run_chains)
    subscriber = Subscriber(base.redis, {RULE_CHAINS_CHANGED: parts.index.forget}, parts.index.forget)
    expire = Sweep(60, kept_for(database, tables.report.c.expires_at_ms, 0, AT_ONCE), "reports stay")
    worker = JobWorker(base.broker, [GENERATE_REPORT.queue_name()], threads=_THREADS)
    return [worker, parts.index, parts.activities, subscriber, expire]
