"""What the rules service and its workers are connected to, assembled alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import NamedTuple

import grpc
from aemos.v1 import data_stream_pb2_grpc, history_pb2_grpc, schedule_pb2_grpc
from aemos_core.announce import Announcer
from aemos_core.broker import WakeRedisBroker, open_broker
from aemos_core.database import Database, open_database
from aemos_core.jobs import GENERATE_REPORT, RESUME_RUNS, RUN_READING_CHAINS, SEND_EMAIL, JobQueue, JobSpec
from aemos_core.outbox import Outbox
from aemos_core.outbox_senders import ANNOUNCE, AnnounceSender, JobSender, Receipts
from aemos_core.redis_link import RedisClient, open_redis
from aemos_core.rpc import open_channel
from aemos_core.worker import actor_on_loop, is_outage, with_receipt

from aemos_rules import sent_effects, tables
from aemos_rules.chain_index import CHAINS_CHANGED, tell
from aemos_rules.settings import RulesSettings


class Base(NamedTuple):
    """Open connections; `jobs` is the queue's Redis."""

    database: Database
    redis: RedisClient
    jobs: RedisClient
    ingest: grpc.aio.Channel
    broker: WakeRedisBroker
    outbox: Outbox
    receipts: Receipts

    @property
    def history(self) -> history_pb2_grpc.HistoryServiceAsyncStub:
        """What ingest knows of sensors."""
        return history_pb2_grpc.HistoryServiceStub(self.ingest)

    def take(
        self,
        spec: JobSpec,
        job: Callable[[bytes], Awaitable[None]],
        outlasts: Callable[[BaseException], bool] = is_outage,
    ) -> None:
        """Has jobs of one kind done here."""
        actor_on_loop(self.broker, spec, with_receipt(self.jobs, job), outlasts=outlasts)


@asynccontextmanager
async def connected(settings: RulesSettings) -> AsyncIterator[Base]:
    """Both send the same kinds of outbox rows: each takes over what the other left."""
    async with AsyncExitStack() as stack:
        enter, secret = stack.enter_async_context, settings.service_secret
        database = await enter(open_database(settings.database_of("rules")))
        redis, jobs = await enter(open_redis(settings.redis_url)), await enter(open_redis(settings.jobs_url))
        ingest = await enter(open_channel(settings.ingest_target, secret))
        scheduler = await enter(open_channel(settings.scheduler_target, secret))
        broker = open_broker(settings.jobs_url)
        stack.callback(broker.close)
        queue = JobQueue(broker)
        stack.callback(queue.close)
        outbox = Outbox(database, tables.outbox)
        receipts = Receipts(jobs, outbox.relay_id)
        for spec in (GENERATE_REPORT, RUN_READING_CHAINS, SEND_EMAIL, RESUME_RUNS):
            outbox.add_sender(spec.name, JobSender(queue, spec, jobs, receipts))
        calls: dict[str, sent_effects.Call] = {
            sent_effects.DERIVED_READINGS: sent_effects.writing(data_stream_pb2_grpc.DataStreamServiceStub(ingest)),
            sent_effects.FIRINGS_FINISHED: sent_effects.finishing(schedule_pb2_grpc.SchedulerServiceStub(scheduler)),
            CHAINS_CHANGED: partial(tell, redis),
        }
        for kind, call in calls.items():
            outbox.add_sender(kind, sent_effects.CallSender(call))
        outbox.add_sender(ANNOUNCE, AnnounceSender(Announcer(redis), redis))
        yield Base(database, redis, jobs, ingest, broker, outbox, receipts)
