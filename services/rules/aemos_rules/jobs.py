"""The job of judging readings."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from aemos.v1 import job_pb2
from aemos_core import telemetry
from aemos_core.outbox_senders import send_receipt
from aemos_core.redis_link import RedisClient
from aemos_core.worker import current_job

from aemos_rules.chain_index import ChainIndex
from aemos_rules.domain import Reading, StateAssertion
from aemos_rules.effects import Effects
from aemos_rules.engine import CompiledChain, RunResult

log = logging.getLogger("aemos.rules")

_VALUE_OF: Mapping[str, Callable[[job_pb2.CommittedReading], object]] = {
    "number": lambda reading: reading.number,
    "text": lambda reading: reading.text,
    "boolean": lambda reading: reading.text == "true",
    "json": lambda reading: json.loads(reading.text),
}


class Judge:
    """A job may come twice or late: what it asserts counts once, by its place in event time."""

    def __init__(self, index: ChainIndex, effects: Effects, jobs_redis: RedisClient) -> None:
        self._index = index
        self._effects = effects
        self._jobs_redis = jobs_redis

    async def evaluate_readings(self, payload: bytes, job_id: str) -> None:
        """Runs every chain of every reading's sensor, in order, and applies what they assert."""
        readings = job_pb2.ReadingBatch.FromString(payload).readings
        judges = await self._index.judges_of({reading.sensor_uuid for reading in readings})
        contexts = (reading.trace_context for reading in readings)
        with telemetry.batch(telemetry.SPAN_JOB, contexts, len(readings)):
            await self._effects.apply(_judged(readings, judges))
        await self._done(job_id)

    async def _done(self, job_id: str) -> None:
        await send_receipt(self._jobs_redis, current_job.get().receipts, job_id)


def _judged(
    readings: Sequence[job_pb2.CommittedReading], judges: Mapping[str, Sequence[CompiledChain]]
) -> list[StateAssertion]:
    asserted: list[StateAssertion] = []
    failures: Counter[str] = Counter()
    for message in readings:
        chains = judges[message.sensor_uuid]
        if not chains:
            continue
        reading = _reading(message)
        for chain in chains:
            result = _run(chain, reading) if reading.trace_context else chain.run(reading)
            if result.effects:
                asserted += result.effects
            elif result.outcome == "error":
                failures[_failure(chain, result)] += 1
    _report(failures)
    return asserted


def _run(chain: CompiledChain, reading: Reading) -> RunResult:
    """A run of a sampled reading: what follows from it is a child of its span."""
    attributes: telemetry.Attributes = {"chain": chain.chain.id, "chain.name": chain.chain.name}
    with telemetry.child(telemetry.SPAN_RUN, reading.trace_context, attributes) as span:
        result = chain.run(reading._replace(trace_context=telemetry.carry(span)))
        if span is not None:
            span.set_attributes({"outcome": result.outcome, "stopped_at": result.node_name, "error": result.error})
        return result


def _reading(message: job_pb2.CommittedReading) -> Reading:
    return Reading(
        message.id,
        message.organization_id,
        message.device_id,
        message.device_uuid,
        message.sensor_id,
        message.sensor_uuid,
        message.telemetry_data_id,
        message.variable_name,
        message.variable_type,  # type: ignore[arg-type]
        _VALUE_OF[message.variable_type](message),
        message.received_at_ms,
        message.trace_context,
    )


def _failure(chain: CompiledChain, result: RunResult) -> str:
    return f"chain {chain.chain.id}, node {result.node_index} {result.node_name!r}: {result.error}"


def _report(failures: Counter[str]) -> None:
    for failure, count in failures.items():
        log.warning("%d runs failed: %s", count, failure)
