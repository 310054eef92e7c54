"""What one rule worker does: a real process, jobs on its queue, MariaDB and Redis of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil
from aemos.v1 import job_pb2
from aemos_core.broker import open_broker
from aemos_core.database import Database, migrate, open_database
from aemos_core.identity import Caller, set_caller
from aemos_core.jobs import EVALUATE_READINGS, JobQueue
from aemos_core.names import notification_log
from aemos_core.redis_link import RedisClient, open_redis
from aemos_core.times import now_ms
from aemos_rules import chain_store, state_store
from aemos_rules.domain import Node, RuleChain

from tests.bench import fan_out, loads
from tests.bench.support import Installation, header, installation, median, table
from tests.support.mariadb import mariadb_server
from tests.support.redis_server import redis_server

DEVICES = 1_000
IN_JOB = 500
ROUNDS = 3
WARM_SECONDS = 5
END_TO_END_SECONDS = 20
MOST_S = 120.0
_IN_TRANSACTION = 50
RECEIPTS = "bench:receipts"
Value = Callable[[int, int], float]
"""(device, how often it has sent) -> what it sends."""


class Bench:
    """A migrated database, a queue, and a worker process."""

    def __init__(self, database: Database, redis: RedisClient, jobs: RedisClient, queue: JobQueue, pid: int) -> None:
        self.database, self.redis, self.jobs, self.queue = database, redis, jobs, queue
        self.process = psutil.Process(pid)
        self._ids = 0
        self._last: dict[int, bool] = {}
        self.changes = 0

    async def chains(self, count: int, per_sensor: Callable[[str, int], Sequence[Sequence[Node]]]) -> None:
        """For each of `count` sensors s0, s1, ... its chains; each device has one sensor and one state."""
        set_caller(Caller(1, 1, "admin"))
        for some in range(0, count, _IN_TRANSACTION):
            async with self.database.write() as connection:
                for number in range(some, min(some + _IN_TRANSACTION, count)):
                    names = {"device_id": number + 1, "device_uuid": f"d{number}", "name": "alert"}
                    values = {"organization_id": 1, "default_value": "normal", **names}
                    state = await state_store.create(connection, values)
                    for nodes in per_sensor(f"s{number}", state):
                        chain = RuleChain(0, 1, f"chain {number}", True, 1, tuple(nodes), False, "", "UTC")
                        await chain_store.save(connection, chain, [f"s{number}"])

    async def judge(self, count: int, value: Value, sensors: int = DEVICES, variables: int = 0) -> float:
        """Seconds until `count` readings, IN_JOB a job, are judged; readings go round the sensors."""
        batches = [
            self._batch(min(IN_JOB, count - start), value, sensors, variables) for start in range(0, count, IN_JOB)
        ]
        await self.jobs.delete(RECEIPTS)
        began = time.perf_counter()
        for batch in batches:
            await self.queue.enqueue(EVALUATE_READINGS, batch, receipts=RECEIPTS)
        while await self.jobs.llen(RECEIPTS) < len(batches):
            assert time.perf_counter() - began < MOST_S
            await asyncio.sleep(0.005)
        return time.perf_counter() - began

    def _batch(self, count: int, value: Value, sensors: int, variables: int) -> bytes:
        batch, now = job_pb2.ReadingBatch(), now_ms()
        sources: dict[int, job_pb2.ReadingSource] = {}
        for _ in range(count):
            number, visit, self._ids = self._ids % sensors, self._ids // sensors, self._ids + 1
            reading = value(number, visit)
            self.changes += self._last.get(number, False) != (reading > 25)
            self._last[number] = reading > 25
            variable = self._ids % variables if variables else number + 1
            batch.readings.add(
                id=self._ids, telemetry_data_id=variable, number=reading, text=str(reading), received_at_ms=now
            )
            sources[variable] = job_pb2.ReadingSource(
                telemetry_data_id=variable, organization_id=1, device_id=number + 1, device_uuid=f"d{number}",
                sensor_id=number + 1, sensor_uuid=f"s{number}", variable_name="temperature", variable_type="number",
            )  # fmt: skip
        batch.sources.extend(sources.values())
        return batch.SerializeToString()

    async def announced(self) -> None:
        """Waits until every change of a state is in the notification log."""
        deadline = time.perf_counter() + MOST_S
        while await self.redis.xlen(notification_log(1)) < self.changes:
            assert time.perf_counter() < deadline
            await asyncio.sleep(0.005)


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    """Everything fresh."""
    with tempfile.TemporaryDirectory(prefix="aemos-bench-") as folder:
        (Path(folder) / "redis").mkdir()
        with (
            mariadb_server(Path(folder) / "mariadb") as database_url,
            redis_server(Path(folder) / "redis") as redis_url,
        ):
            url = database_url.format(service="rules")
            await migrate(url, "aemos_rules")
            environment = os.environ | {
                "AEMOS_DATABASE_URL": database_url,
                "AEMOS_REDIS_URL": redis_url,
                "AEMOS_RULES_PARTITIONS": "1",
                "AEMOS_SERVICE_SECRET": "a secret of the benchmark",
            }
            with _worker(environment) as pid:
                broker = open_broker(redis_url[:-1] + "1")
                queue = JobQueue(broker)
                try:
                    async with (
                        open_database(url) as database,
                        open_redis(redis_url) as redis,
                        open_redis(redis_url[:-1] + "1") as jobs,
                    ):
                        yield Bench(database, redis, jobs, queue, pid)
                finally:
                    queue.close()
                    broker.close()


@contextmanager
def _worker(environment: dict[str, str]) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-m", "aemos_rules", "worker"], env=environment)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def alert(sensor: str, state: int) -> Sequence[Sequence[Node]]:
    """The two demonstration chains: each reading runs through one, and the other's filter stops it."""

    def one(condition: str, value: str) -> Sequence[Node]:
        action = {"action": "sendNotification", "deviceStateId": state, "newStateValue": value}
        return (
            Node("filter", "filter", {"sensorUUID": sensor, "condition": condition}),
            Node("transform", "transform", {"action": "convertToFahrenheit"}),
            Node("action", "action", action),
        )

    return one("value > 25", "warning"), one("value <= 25", "normal")


def cold(sensor: str, state: int) -> Sequence[Sequence[Node]]:
    """Only the second of them."""
    return alert(sensor, state)[1:]


def _cold(_device: int, _visit: int) -> float:
    return 20.0


async def _rate(one: Bench, count: int, value: Value) -> float:
    """Chain runs a second, median; a round ends when what changed is in the log."""
    rates = []
    for _ in range(ROUNDS):
        took = await one.judge(count, value)
        began = time.perf_counter()
        await one.announced()
        rates.append(2 * count / (took + time.perf_counter() - began))
    return median(rates)


def _now_and_then(device: int, visit: int) -> float:
    """Two changes in 200 readings."""
    return 26.0 if (visit + device) % 200 == 0 else 20.0


def _half(device: int, visit: int) -> float:
    """Two changes in four readings."""
    return 26.0 if (visit + device) % 4 < 2 else 20.0


async def _steady() -> tuple[float, float]:
    async with bench() as one:
        await one.chains(DEVICES, alert)
        await one.judge(2 * DEVICES, _cold)
        return await _rate(one, 60_000, _now_and_then), await _rate(one, 10_000, _half)


async def _index(chains: int) -> float:
    async with bench() as one:
        await one.chains(chains, cold)
        await one.judge(chains, _cold, chains)
        return median([20_000 / await one.judge(20_000, _cold, 100) for _ in range(ROUNDS)])


async def _windows(count: int) -> tuple[float, float]:
    """(MB of the worker, readings a second) with so many open windows."""
    passing = Node("filter", "filter", {"sensorUUID": "s0", "condition": "value > 0"})
    window = Node("transform", "window", {"action": "window", "seconds": 86_400.0})
    async with bench() as one:
        await one.chains(1, lambda _sensor, _state: [(passing, window)])
        await one.judge(1_000, _cold, 1, 10)
        took = await one.judge(count, _cold, 1, count)
        return one.process.memory_info().rss / 1e6, count / took


def _judged(inst: Installation) -> tuple[float, int]:
    """When it was counted, and how many readings are stored and wait for no rule."""
    waiting = "SELECT COALESCE(SUM(weight), 0) FROM aemos_ingest.outbox WHERE kind = 'evaluate_readings'"
    found = int(inst.sql(f"SELECT (SELECT COUNT(*) FROM aemos_ingest.data_stream) - ({waiting})"))
    return time.perf_counter(), found


def _end_to_end() -> float:
    """Chain runs a second of two workers while ingest stores more readings than they judge."""
    with installation(DEVICES, AEMOS_RULES_PARTITIONS="2") as inst, ThreadPoolExecutor(1) as threads:
        (first,) = inst.stack.pids("aemos_rules worker")
        with _worker(psutil.Process(first).environ()):
            sending = threads.submit(loads.http, inst, WARM_SECONDS + END_TO_END_SECONDS + WARM_SECONDS, 100)
            time.sleep(WARM_SECONDS)
            began, before = _judged(inst)
            time.sleep(END_TO_END_SECONDS)
            ended, after = _judged(inst)
            sending.result()
            return 2 * (after - before) / (ended - began)


async def _measured() -> list[list[str]]:
    few, half = await _steady()
    some, many = await _index(100), await _index(10_000)
    memory, rate = await _windows(100_000)
    work = f"jobs of {IN_JOB} readings from {DEVICES:,} devices, two chains each (filter, transform, action)"
    return [
        [f"{work}; 1 % of the readings change a state", f"{few:,.0f} chain runs/s", "20,000", "50,000"],
        [
            "the same, half of the readings change a state and announce it",
            f"{half:,.0f} chain runs/s",
            "3,000",
            "6,000",
        ],
        [
            "10,000 chains in the index, a reading matches one, against 100 chains",
            f"{(some / many - 1) * 100:+.0f} % time ({many:,.0f}/s, {some:,.0f}/s)",
            "15 %",
            "5 %",
        ],
        [
            "100,000 open windows: memory of the worker",
            f"{memory:.0f} MB ({rate:,.0f} readings/s into them)",
            "400 MB",
            "200 MB",
        ],
    ]


def measure() -> str:
    """The page."""
    rows = asyncio.run(_measured())
    work = f"two workers, ingest storing batches of 100 over HTTP beside them, {END_TO_END_SECONDS} s, end to end"
    rows.append([work, f"{_end_to_end():,.0f} chain runs/s", "8,000", "12,000"])
    rows += fan_out.measure()
    return "\n".join([*header("rules"), *table(["one worker process", "measured", "floor", "goal"], rows), ""])
