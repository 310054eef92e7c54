"""The only place that assembles the scheduler."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from aemos.v1.rule_chain_pb2_grpc import RuleChainServiceStub
from aemos_core.broker import open_broker
from aemos_core.database import open_database
from aemos_core.jobs import RUN_CHAINS, JobQueue
from aemos_core.names import RULE_CHAINS_CHANGED
from aemos_core.outbox import Outbox
from aemos_core.outbox_senders import JobSender, Receipts
from aemos_core.process import Component
from aemos_core.redis_link import Subscriber, open_redis
from aemos_core.rpc import grpc_server, open_channel, remote_verifier
from aemos_core.sweeping import Sweep

from aemos_scheduler.domain import Timetable
from aemos_scheduler.grpc_api import SchedulerServicer
from aemos_scheduler.service import Clock, ScheduleCopy, Tidier
from aemos_scheduler.settings import SchedulerSettings
from aemos_scheduler.store import FiringStore
from aemos_scheduler.tables import OUTBOX


@asynccontextmanager
async def wire(settings: SchedulerSettings) -> AsyncIterator[Sequence[Component]]:
    """Opens what the scheduler needs, in order; closes it in reverse."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(open_database(settings.database_of("scheduler")))
        redis = await enter(open_redis(settings.redis_url))
        jobs_redis = await enter(open_redis(settings.jobs_url))
        broker = open_broker(settings.jobs_url)
        stack.callback(broker.close)
        queue = JobQueue(broker)
        stack.callback(queue.close)
        to_rules = await enter(open_channel(settings.rules_target, settings.service_secret))
        to_ingest = await enter(open_channel(settings.ingest_target, settings.service_secret))

        outbox = Outbox(database, OUTBOX)
        receipts = Receipts(jobs_redis, outbox.relay_id)
        outbox.add_sender(RUN_CHAINS.name, JobSender(queue, RUN_CHAINS, jobs_redis, receipts))

        timetable = Timetable()
        firings = FiringStore(database, outbox, settings.rules_partitions)
        tidier, rules = Tidier(firings), RuleChainServiceStub(to_rules)
        clock = Clock(timetable, firings, tidier)
        copy = ScheduleCopy(rules, firings, timetable, clock)
        hints = Subscriber(redis, {RULE_CHAINS_CHANGED: lambda _: copy.hint()}, on_gap=copy.hint)
        servicers = [SchedulerServicer(timetable, firings, clock, copy)]
        server = await enter(grpc_server(settings, "scheduler", remote_verifier(to_ingest), servicers))
        yield [server, outbox, receipts, hints, copy, clock, Sweep(10, tidier.tidy, "history stays as it is")]
