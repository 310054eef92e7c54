"""The job of chains that a schedule made due: run, carry out, and tell the scheduler how each ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from aemos.v1 import job_pb2, schedule_pb2
from aemos_core import telemetry
from aemos_core.errors import AemosError
from aemos_core.jobs import RUN_READING_CHAINS
from aemos_core.outbox import Row
from aemos_core.outbox_lane import MOST_IN_BATCH
from aemos_core.times import now_ms

from aemos_rules.appliers import Parts
from aemos_rules.domain import Question
from aemos_rules.engine import CompiledChain
from aemos_rules.run import Start, World
from aemos_rules.run_records import Ran
from aemos_rules.sensor_source import SensorSource

log = logging.getLogger("aemos.rules")

_OUTCOMES = {"fired": "completed", "stopped": "stopped", "error": "failed", "loop": "failed"}
_MOST_ERROR = 200
Answers = Mapping[Question, Mapping[str, Any]]


class ScheduledRuns:
    """May come twice or late: what runs say counts once, by the instant that was planned.

    Without a source it hands chains that ask about sensors on, each as a job of its own.
    """

    def __init__(self, parts: Parts, source: SensorSource | None = None) -> None:
        self._index, self._effects = parts.index, parts.effects
        self._source = source

    async def run_chains(self, payload: bytes) -> None:
        """Runs them without a reading. Only sampled runs carry out their effects one by one, inside their span."""
        runs = job_pb2.ScheduledRuns.FromString(payload).runs
        chains = await self._index.compiled({run.rule_chain_id for run in runs})
        said: list[Any] = []
        for run in runs:
            chain = chains.get(run.rule_chain_id)
            if chain is not None and chain.questions and self._source is None:
                said.append(_handed_on(run))
                continue
            span = telemetry.start_trace(telemetry.SPAN_RUN, {"chain": run.rule_chain_id}) if chain else None
            with telemetry.ending(span):
                found = await self._ended(run, chain)
                if span is None:
                    said += found
                else:
                    await self._effects.apply(found)
        await self._effects.apply(said)

    async def _ended(self, run: job_pb2.ScheduledRun, chain: CompiledChain | None) -> Sequence[Any]:
        """What follows from a run, its end included."""
        end = schedule_pb2.FiringEnd(
            rule_chain_id=run.rule_chain_id,
            planned_at_ms=run.planned_at_ms,
            started_at_ms=now_ms(),
            outcome="dropped",
            trace_id=telemetry.trace_id_of(telemetry.current()),
        )
        said: list[Any] = [end]
        if chain is not None and chain.chain.enabled and (chain.chain.schedule_enabled or run.manual):
            try:
                answers = await self._answers(run, chain)
            except AemosError as error:
                if error.kind.answers.job_again:
                    raise
                end.outcome, end.error = "failed", error.detail[:_MOST_ERROR]
            else:
                _run(run, chain, World(now_ms(), answers=answers), said)
        end.finished_at_ms = now_ms()
        return said

    async def _answers(self, run: job_pb2.ScheduledRun, chain: CompiledChain) -> Answers:
        if self._source is None:
            return {}
        asked, organization_id, at_ms = sorted(chain.questions), run.organization_id, run.planned_at_ms
        answer, timezone = self._source.answer, chain.chain.timezone
        found = await asyncio.gather(*(answer(organization_id, each, at_ms, timezone) for each in asked))
        return dict(zip(asked, found, strict=True))


def _handed_on(run: job_pb2.ScheduledRun) -> Row:
    payload = job_pb2.ScheduledRuns(runs=[run]).SerializeToString()
    return Row(RUN_READING_CHAINS.name, run.rule_chain_id % 4, payload, MOST_IN_BATCH)


def _run(run: job_pb2.ScheduledRun, chain: CompiledChain, world: World, said: list[Any]) -> None:
    end, result = said[0], chain.run(None, run.planned_at_ms, world)
    end.outcome = _OUTCOMES[result.outcome]
    chain.activity.note(None, result)
    said.append(Ran(chain, Start(None, run.planned_at_ms), world, result))
    if result.error:
        end.error = f"node {result.node_index} {result.node_name!r}: {result.error}"[:_MOST_ERROR]
        log.warning("scheduled chain %d failed: %s", run.rule_chain_id, end.error)
