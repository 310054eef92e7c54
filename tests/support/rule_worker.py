"""A rule worker without its queue: jobs in, what the outbox was given out, and a way to die before the commit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aemos.v1 import history_pb2, job_pb2, schedule_pb2
from aemos_core.database import Database
from aemos_core.jobs import RESUME_RUNS
from aemos_core.redis_link import RedisClient
from aemos_rules import chain_store
from aemos_rules.appliers import Parts
from aemos_rules.contexts import Contexts
from aemos_rules.domain import Node, Reading, RuleChain
from aemos_rules.jobs import Judge
from aemos_rules.scheduled_runs import ScheduledRuns
from aemos_rules.sent_effects import FIRINGS_FINISHED

from tests.support.outbox import FakeOutbox, Killed
from tests.support.play import SENSOR


class FakeHistory:
    """ingest, as far as contexts ask it: what `answer` holds."""

    def __init__(self) -> None:
        self.answer = history_pb2.GetContextResponse()
        self.calls = 0

    async def GetContext(self, request: history_pb2.GetContextRequest) -> history_pb2.GetContextResponse:
        self.calls += 1
        return self.answer


class Worker:
    """One process' parts, as wiring assembles them."""

    def __init__(self, database: Database, redis: RedisClient, history: FakeHistory | None = None) -> None:
        self.outbox = FakeOutbox()
        parts = Parts(database, redis, self.outbox)
        self.memory, self.deadlines, self.index = parts.memory, parts.deadlines, parts.index
        self.history = history or FakeHistory()
        self.contexts = Contexts(database, self.history)  # type: ignore[arg-type]
        self.judge = Judge(parts, self.contexts, 1)
        self.scheduled = ScheduledRuns(parts)

    async def evaluate(self, *readings: Reading) -> None:
        """One job of readings."""
        await self.judge.evaluate_readings(batch_of(readings).SerializeToString())

    async def resume(self) -> int:
        """The jobs of the deadlines that were sent; returns how many runs there were."""
        sent, self.outbox.sent = self.outbox.sent, []
        rows = [row for row in sent if row.kind == RESUME_RUNS.name]
        self.outbox.sent = [row for row in sent if row.kind != RESUME_RUNS.name]
        for row in rows:
            await self.judge.resume_runs(row.payload)
        return len(rows)

    async def fire(self, *runs: job_pb2.ScheduledRun) -> list[schedule_pb2.FiringEnd]:
        """One job of scheduled runs; returns what the scheduler is told."""
        self.outbox.sent = []
        await self.scheduled.run_chains(job_pb2.ScheduledRuns(runs=runs).SerializeToString())
        told = b"".join(row.payload for row in self.outbox.sent if row.kind == FIRINGS_FINISHED)
        return list(schedule_pb2.FinishFiringsRequest.FromString(told).ends)

    async def die(self, *readings: Reading) -> None:
        """Judges, and is killed before it commits."""
        self.outbox.dies = True
        try:
            await self.evaluate(*readings)
        except Killed:
            return


def batch_of(readings: Iterable[Reading]) -> job_pb2.ReadingBatch:
    """Readings as a job carries them."""
    batch = job_pb2.ReadingBatch()
    for reading in readings:
        batch.sources.add(
            telemetry_data_id=reading.telemetry_data_id,
            organization_id=reading.organization_id,
            device_id=reading.device_id,
            device_uuid=reading.device_uuid,
            sensor_id=reading.sensor_id,
            sensor_uuid=reading.sensor_uuid,
            variable_name=reading.variable_name,
            variable_type=reading.variable_type,
        )
        batch.readings.add(
            id=reading.id,
            telemetry_data_id=reading.telemetry_data_id,
            number=reading.value if reading.variable_type == "number" else None,
            text=str(reading.value),
            received_at_ms=reading.received_at_ms,
            depth=reading.depth,
        )
    return batch


async def save_chain(database: Database, *nodes: Node, connections: tuple[Any, ...] = (), name: str = "chain") -> int:
    """A chain of SENSOR."""
    chain = RuleChain(0, 1, name, True, 1, nodes, False, "", "UTC", connections=connections)
    async with database.write() as connection:
        return await chain_store.save(connection, chain, [SENSOR])
