"""Assembles a rule worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from aemos_core.jobs import EVALUATE_READINGS, RESUME_RUNS, RUN_CHAINS
from aemos_core.leases import PartitionLeases
from aemos_core.names import REGISTRY_CHANGED, RULE_CHAINS_CHANGED
from aemos_core.process import Component
from aemos_core.redis_link import Subscriber
from aemos_core.sweeping import Sweep, kept_for
from aemos_core.worker import JobWorker

from aemos_rules import run_records, tables
from aemos_rules.appliers import Parts
from aemos_rules.base_wiring import connected
from aemos_rules.contexts import Contexts
from aemos_rules.jobs import Judge
from aemos_rules.scheduled_runs import ScheduledRuns
from aemos_rules.settings import RulesSettings


@asynccontextmanager
async def wire_worker(settings: RulesSettings) -> AsyncIterator[Sequence[Component]]:
    """Opens what a rule worker needs, in order; closes it in reverse."""
    async with connected(settings) as base:
        database = base.database
        parts = Parts(database, base.redis, base.outbox)
        index, contexts = parts.index, Contexts(database, base.history)
        judge = Judge(parts, contexts, settings.rules_partitions)

        partitions = {EVALUATE_READINGS.queue_name(p): p for p in range(settings.rules_partitions)}
        leases = PartitionLeases(base.jobs, settings.rules_partitions, on_gain=base.broker.permissions_changed)
        base.broker.may_fetch = lambda queue: leases.holds(partitions[queue])
        base.take(EVALUATE_READINGS, judge.evaluate_readings)
        base.take(RESUME_RUNS, judge.resume_runs)
        base.take(RUN_CHAINS, ScheduledRuns(parts).run_chains)
        hints = {RULE_CHAINS_CHANGED: index.forget, REGISTRY_CHANGED: contexts.forget}

        def forget_all() -> None:
            index.forget()
            contexts.forget()

        subscriber = Subscriber(base.redis, hints, forget_all)
        yield [
            JobWorker(base.broker, partitions),
            leases,
            index,
            base.outbox,
            base.receipts,
            subscriber,
            parts.deadlines,
            parts.activities,
            Sweep(60, kept_for(database, tables.chain_run.c.recorded_at_ms, run_records.KEPT_MS), "old runs stay"),
            Sweep(60, partial(run_records.thin_out, database), "runs stay"),
        ]
