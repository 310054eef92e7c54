"""Assembles a rule worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from aemos.v1 import history_pb2_grpc
from aemos_core.database import open_database
from aemos_core.jobs import EVALUATE_READINGS, RESUME_RUNS, RUN_CHAINS
from aemos_core.leases import PartitionLeases
from aemos_core.names import REGISTRY_CHANGED, RULE_CHAINS_CHANGED
from aemos_core.process import Component
from aemos_core.redis_link import Subscriber, open_redis
from aemos_core.rpc import open_channel
from aemos_core.sweeping import Sweep, kept_for
from aemos_core.worker import JobWorker, actor_on_loop, is_outage, with_receipt

from aemos_rules import run_store, tables
from aemos_rules.appliers import Parts
from aemos_rules.contexts import Contexts
from aemos_rules.jobs import Judge
from aemos_rules.scheduled_runs import ScheduledRuns
from aemos_rules.settings import RulesSettings
from aemos_rules.wiring import open_outbox


@asynccontextmanager
async def wire_worker(settings: RulesSettings) -> AsyncIterator[Sequence[Component]]:
    """Opens what a rule worker needs, in order; closes it in reverse."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(open_database(settings.database_of("rules")))
        redis = await enter(open_redis(settings.redis_url))
        jobs_redis = await enter(open_redis(settings.jobs_url))
        outbox, receipts, broker = await open_outbox(stack, settings, database, redis, jobs_redis)
        ingest = await enter(open_channel(settings.ingest_target, settings.service_secret))
        parts = Parts(database, redis, outbox)
        index = parts.index
        contexts = Contexts(database, history_pb2_grpc.HistoryServiceStub(ingest))
        judge = Judge(index, parts.effects, parts.memory, contexts, settings.rules_partitions)
        scheduled = ScheduledRuns(index, parts.effects)

        partitions = {EVALUATE_READINGS.queue_name(p): p for p in range(settings.rules_partitions)}
        leases = PartitionLeases(jobs_redis, settings.rules_partitions, on_gain=broker.permissions_changed)
        broker.may_fetch = lambda queue: leases.holds(partitions[queue])
        jobs = {
            EVALUATE_READINGS: judge.evaluate_readings,
            RESUME_RUNS: judge.resume_runs,
            RUN_CHAINS: scheduled.run_chains,
        }
        for spec, job in jobs.items():
            actor_on_loop(broker, spec, with_receipt(jobs_redis, job), outlasts=is_outage)
        hints = {RULE_CHAINS_CHANGED: index.forget, REGISTRY_CHANGED: contexts.forget}

        def forget_all() -> None:
            index.forget()
            contexts.forget()

        subscriber = Subscriber(redis, hints, forget_all)
        yield [
            JobWorker(broker, partitions),
            leases,
            index,
            outbox,
            receipts,
            subscriber,
            parts.deadlines,
            parts.activities,
            Sweep(60, kept_for(database, tables.chain_run.c.recorded_at_ms, run_store.KEPT_MS), "old runs stay"),
            Sweep(60, partial(run_store.thin_out, database), "runs stay"),
        ]
