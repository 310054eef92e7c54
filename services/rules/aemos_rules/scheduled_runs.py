"""The job of chains that a schedule made due: run, carry out, and tell the scheduler how each ended."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from aemos.v1 import job_pb2, schedule_pb2, schedule_pb2_grpc
from aemos_core import telemetry
from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind
from aemos_core.jobs import GENERATE_REPORT
from aemos_core.outbox import Outbox, Row
from aemos_core.outbox_lane import MOST_IN_BATCH
from aemos_core.outbox_senders import send_receipt
from aemos_core.redis_link import RedisClient
from aemos_core.times import now_ms
from aemos_core.worker import current_job

from aemos_rules.chain_index import ChainIndex
from aemos_rules.domain import ReportWanted, StateAssertion
from aemos_rules.effects import Effects
from aemos_rules.engine import CompiledChain
from aemos_rules.run import World

log = logging.getLogger("aemos.rules")

FIRINGS_FINISHED = "firings-finished"
_OUTCOMES = {"fired": "completed", "stopped": "stopped", "error": "failed"}
_MOST_ERROR = 200


class ScheduledRuns:
    """May come twice or late: what runs assert counts once, by the instant that was planned."""

    def __init__(
        self, index: ChainIndex, effects: Effects, database: Database, outbox: Outbox, jobs_redis: RedisClient
    ) -> None:
        self._index = index
        self._effects = effects
        self._database = database
        self._outbox = outbox
        self._jobs_redis = jobs_redis

    async def run_chains(self, payload: bytes, job_id: str) -> None:
        """Runs them without a reading. Only sampled runs carry out their effects one by one, inside their span."""
        runs = job_pb2.ScheduledRuns.FromString(payload).runs
        chains = await self._index.compiled({run.rule_chain_id for run in runs})
        asserted: list[StateAssertion] = []
        reports: list[Row] = []
        ends = []
        for run in runs:
            chain = chains.get(run.rule_chain_id)
            span = telemetry.start_trace(telemetry.SPAN_RUN, {"chain": run.rule_chain_id}) if chain else None
            with telemetry.ending(span):
                end, found = _run(run, chain)
                effects = [effect for effect in found if not isinstance(effect, ReportWanted)]
                reports += [_job(run, effect) for effect in found if isinstance(effect, ReportWanted)]
                if span is not None:
                    await self._effects.apply(effects)
                else:
                    asserted += effects
            ends.append(end)
        await self._effects.apply(asserted)
        await self._announce(ends, reports)
        await send_receipt(self._jobs_redis, current_job.get().receipts, job_id)

    async def _announce(self, ends: list[schedule_pb2.FiringEnd], reports: list[Row]) -> None:
        payload = schedule_pb2.FinishFiringsRequest(ends=ends).SerializeToString()
        async with self._database.write() as connection:
            rows = await self._outbox.add(connection, [*reports, Row(FIRINGS_FINISHED, 0, payload, len(ends))])
        self._outbox.committed(rows)


def _run(
    run: job_pb2.ScheduledRun, chain: CompiledChain | None
) -> tuple[schedule_pb2.FiringEnd, Sequence[StateAssertion | ReportWanted]]:
    end = schedule_pb2.FiringEnd(
        rule_chain_id=run.rule_chain_id,
        planned_at_ms=run.planned_at_ms,
        started_at_ms=now_ms(),
        outcome="dropped",
        trace_id=telemetry.trace_id_of(telemetry.current()),
    )
    effects: Sequence[StateAssertion | ReportWanted] = ()
    if chain is not None and chain.chain.enabled and (chain.chain.schedule_enabled or run.manual):
        result = chain.run(None, run.planned_at_ms, World(now_ms()))
        end.outcome, effects = _OUTCOMES[result.outcome], result.effects
        if result.outcome == "error":
            end.error = f"node {result.node_index} {result.node_name!r}: {result.error}"[:_MOST_ERROR]
            log.warning("scheduled chain %d failed: %s", run.rule_chain_id, end.error)
    end.finished_at_ms = now_ms()
    return end, effects


def _job(run: job_pb2.ScheduledRun, wanted: ReportWanted) -> Row:
    """The report's job, of the chain's time zone; a lane has two of them under way."""
    job = job_pb2.GenerateReport(
        organization_id=run.organization_id,
        rule_chain_id=run.rule_chain_id,
        timezone=run.timezone,
        at_ms=run.planned_at_ms,
        key=wanted.key,
        title=wanted.title,
        period=wanted.period,
        email_to=wanted.email_to,
        **wanted.about._asdict(),
    )
    return Row(GENERATE_REPORT.name, run.rule_chain_id % 2, job.SerializeToString(), MOST_IN_BATCH)


class FinishSender:
    """Reports ends to the scheduler, which counts the first of each run."""

    keep_ms = 0

    def __init__(self, scheduler: schedule_pb2_grpc.SchedulerServiceAsyncStub) -> None:
        self._scheduler = scheduler

    async def send(self, partition: int, rows: Sequence[Row]) -> None:
        """Returns when they are known; raises ConnectionError to be called again."""
        request = schedule_pb2.FinishFiringsRequest.FromString(b"".join(row.payload for row in rows))
        try:
            await self._scheduler.FinishFirings(request)
        except AemosError as error:
            if error.kind is not Kind.INVALID:
                raise ConnectionError(error.detail) from error
            log.error("%d ends of runs were refused: %s", len(request.ends), error.detail)

    async def lost_everything(self) -> bool:
        """The scheduler's database is not Redis."""
        return False
