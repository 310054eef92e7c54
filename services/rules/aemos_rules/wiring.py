"""Assembles the rules service and its workers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
from aemos.v1 import device_pb2_grpc, schedule_pb2_grpc, sensor_pb2_grpc
from aemos_core.announce import Announcer
from aemos_core.broker import open_broker
from aemos_core.database import Database, migrate, open_database
from aemos_core.jobs import EVALUATE_READINGS, RUN_CHAINS
from aemos_core.leases import PartitionLeases
from aemos_core.names import RULE_CHAINS_CHANGED
from aemos_core.outbox import Outbox
from aemos_core.outbox_senders import ANNOUNCE, AnnounceSender
from aemos_core.process import Component
from aemos_core.redis_link import RedisClient, Subscriber, open_redis
from aemos_core.rpc import grpc_server, open_channel, remote_verifier
from aemos_core.worker import JobWorker, actor_on_loop

import aemos_rules
from aemos_rules import tables
from aemos_rules.alarm_service import Alarms
from aemos_rules.chain_index import CHAINS_CHANGED, ChainIndex, ChainsChangedSender
from aemos_rules.chain_service import RuleChains
from aemos_rules.effects import Effects
from aemos_rules.grpc_api import AlarmServicer, DeviceStateServicer, RuleChainServicer
from aemos_rules.jobs import Judge
from aemos_rules.scheduled_runs import FIRINGS_FINISHED, FinishSender, ScheduledRuns
from aemos_rules.settings import RulesSettings
from aemos_rules.state_service import DeviceStates

MIGRATIONS = Path(aemos_rules.__file__).parents[1] / "migrations"


async def migrate_database(settings: RulesSettings) -> None:
    """Brings rules' database to the newest version."""
    await migrate(settings.database_of("rules"), MIGRATIONS)


def _outbox(database: Database, redis: RedisClient, scheduler: grpc.aio.Channel) -> Outbox:
    outbox = Outbox(database, tables.outbox)
    outbox.add_sender(ANNOUNCE, AnnounceSender(Announcer(redis), redis))
    outbox.add_sender(CHAINS_CHANGED, ChainsChangedSender(redis))
    outbox.add_sender(FIRINGS_FINISHED, FinishSender(schedule_pb2_grpc.SchedulerServiceStub(scheduler)))
    return outbox


@asynccontextmanager
async def wire(settings: RulesSettings) -> AsyncIterator[Sequence[Component]]:
    """Opens what the rules service needs, in order; closes it in reverse."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(open_database(settings.database_of("rules")))
        redis = await enter(open_redis(settings.redis_url))
        ingest = await enter(open_channel(settings.ingest_target, settings.service_secret))
        scheduler = await enter(open_channel(settings.scheduler_target, settings.service_secret))
        outbox = _outbox(database, redis, scheduler)
        chains = RuleChains(database, outbox, sensor_pb2_grpc.SensorServiceStub(ingest))
        states = DeviceStates(database, outbox, device_pb2_grpc.DeviceServiceStub(ingest))
        server = await enter(
            grpc_server(
                f"{settings.bind}:{settings.rules_grpc_port}",
                "AEMOS_RULES_GRPC_PORT",
                settings.service_secret,
                remote_verifier(ingest),
                [RuleChainServicer(chains), DeviceStateServicer(states), AlarmServicer(Alarms(database, outbox))],
            )
        )
        yield [server, outbox]


@asynccontextmanager
async def wire_worker(settings: RulesSettings) -> AsyncIterator[Sequence[Component]]:
    """Opens what a rule worker needs, in order; closes it in reverse."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(open_database(settings.database_of("rules")))
        redis = await enter(open_redis(settings.redis_url))
        jobs_redis = await enter(open_redis(settings.jobs_url))
        scheduler = await enter(open_channel(settings.scheduler_target, settings.service_secret))
        outbox = _outbox(database, redis, scheduler)
        index, effects = ChainIndex(database, redis), Effects(database, outbox, redis)
        judge = Judge(index, effects, jobs_redis)
        scheduled = ScheduledRuns(index, effects, database, outbox, jobs_redis)

        partitions = {EVALUATE_READINGS.queue_name(p): p for p in range(settings.rules_partitions)}
        broker = open_broker(settings.jobs_url)
        stack.callback(broker.close)
        leases = PartitionLeases(jobs_redis, settings.rules_partitions, on_gain=broker.permissions_changed)
        broker.may_fetch = lambda queue: leases.holds(partitions[queue])
        actor_on_loop(broker, EVALUATE_READINGS, judge.evaluate_readings)
        actor_on_loop(broker, RUN_CHAINS, scheduled.run_chains)
        subscriber = Subscriber(redis, {RULE_CHAINS_CHANGED: index.forget}, index.forget)
        yield [JobWorker(broker, partitions), leases, index, outbox, subscriber]
