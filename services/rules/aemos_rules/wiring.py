"""Assembles the rules service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from aemos.v1 import data_stream_pb2_grpc, device_pb2_grpc, history_pb2_grpc, schedule_pb2_grpc, sensor_pb2_grpc
from aemos_core.announce import Announcer
from aemos_core.broker import WakeRedisBroker, open_broker
from aemos_core.database import Database, open_database
from aemos_core.jobs import GENERATE_REPORT, RESUME_RUNS, RUN_READING_CHAINS, SEND_EMAIL, JobQueue
from aemos_core.names import REGISTRY_CHANGED
from aemos_core.outbox import Outbox
from aemos_core.outbox_senders import ANNOUNCE, AnnounceSender, JobSender, Receipts
from aemos_core.process import Component
from aemos_core.redis_link import RedisClient, Subscriber, open_redis
from aemos_core.rpc import grpc_server, open_channel, remote_verifier

from aemos_rules import sent_effects, tables
from aemos_rules.alarm_api import AlarmServicer
from aemos_rules.chain_api import RuleChainServicer
from aemos_rules.chain_check import ChainCheck
from aemos_rules.chain_index import CHAINS_CHANGED, ChainsChangedSender
from aemos_rules.contexts import Contexts
from aemos_rules.made_up import MadeUpReadings
from aemos_rules.report_api import ReportServicer
from aemos_rules.run_api import ChainRunServicer
from aemos_rules.settings import RulesSettings
from aemos_rules.slow_wiring import slow_jobs
from aemos_rules.state_api import DeviceStateServicer


async def open_outbox(
    stack: AsyncExitStack, settings: RulesSettings, database: Database, redis: RedisClient, jobs: RedisClient
) -> tuple[Outbox, Receipts, WakeRedisBroker]:
    """The service and its workers send the same kinds: each takes over what the other left."""
    scheduler = await stack.enter_async_context(open_channel(settings.scheduler_target, settings.service_secret))
    broker = open_broker(settings.jobs_url)
    stack.callback(broker.close)
    queue = JobQueue(broker)
    stack.callback(queue.close)
    outbox = Outbox(database, tables.outbox)
    receipts = Receipts(jobs, outbox.relay_id)
    for spec in (GENERATE_REPORT, RUN_READING_CHAINS, SEND_EMAIL, RESUME_RUNS):
        outbox.add_sender(spec.name, JobSender(queue, spec, jobs, receipts))
    ingest = await stack.enter_async_context(open_channel(settings.ingest_target, settings.service_secret))
    calls = {
        sent_effects.DERIVED_READINGS: sent_effects.writing(data_stream_pb2_grpc.DataStreamServiceStub(ingest)),
        sent_effects.FIRINGS_FINISHED: sent_effects.finishing(schedule_pb2_grpc.SchedulerServiceStub(scheduler)),
    }
    for kind, call in calls.items():
        outbox.add_sender(kind, sent_effects.ServiceSender(call))
    outbox.add_sender(ANNOUNCE, AnnounceSender(Announcer(redis), redis))
    outbox.add_sender(CHAINS_CHANGED, ChainsChangedSender(redis))
    return outbox, receipts, broker


@asynccontextmanager
async def wire(settings: RulesSettings) -> AsyncIterator[Sequence[Component]]:
    """Opens what the rules service needs, in order; closes it in reverse."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(open_database(settings.database_of("rules")))
        redis = await enter(open_redis(settings.redis_url))
        ingest = await enter(open_channel(settings.ingest_target, settings.service_secret))
        jobs_redis = await enter(open_redis(settings.jobs_url))
        outbox, receipts, broker = await open_outbox(stack, settings, database, redis, jobs_redis)
        sensors, history = sensor_pb2_grpc.SensorServiceStub(ingest), history_pb2_grpc.HistoryServiceStub(ingest)
        slow = slow_jobs(settings, database, redis, jobs_redis, ingest, outbox, broker)
        check, devices = ChainCheck(database, sensors), device_pb2_grpc.DeviceServiceStub(ingest)
        made_up, contexts = MadeUpReadings(sensors, history), Contexts(database, history)
        servicers = [
            RuleChainServicer(database, outbox, check),
            DeviceStateServicer(database, outbox, devices),
            AlarmServicer(database, outbox),
            ReportServicer(database),
            ChainRunServicer(database, redis, check, made_up, contexts, settings.rules_partitions),
        ]
        address, secret = f"{settings.bind}:{settings.rules_grpc_port}", settings.service_secret
        server = await enter(grpc_server(address, "AEMOS_RULES_GRPC_PORT", secret, remote_verifier(ingest), servicers))
        registry = Subscriber(redis, {REGISTRY_CHANGED: contexts.forget}, contexts.forget)
        yield [server, outbox, receipts, registry, *slow]
