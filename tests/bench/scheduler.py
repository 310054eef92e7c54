"""Schedules: what 100,000 cost while nothing is due, and how fast 10,000 of one second reach the workers."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from tests.bench.support import header, median, table
from tests.support.mariadb import mariadb_server
from tests.support.redis_server import redis_server, until
from tests.support.scheduler import START_S, World

LOADED = 100_000
IDLE_SECONDS = 60
DUE = 10_000
ROUNDS = 3
EVERY_SECONDS = 20


@dataclass(slots=True)
class Measured:
    """Seconds of CPU to load, per cent of a core while idle, MB, and seconds until the last of a round was there."""

    loading: float = 0.0
    idle: float = 0.0
    memory: float = 0.0
    rounds: tuple[float, ...] = ()


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def _idle(world: World, measured: Measured) -> None:
    """Yearly schedules, each of a minute of its own."""
    for number in range(LOADED):
        minute, hour, month = number % 60, number // 60 % 24, (time.gmtime().tm_mon + 5) % 12 + 1
        world.rules.add(number + 1, 1, f"{number % 50} {minute} {hour} {1 + number % 28} {month} *")
    with world.schedulers(0) as (process,):
        scheduler = psutil.Process(process.pid)
        await until(lambda: world.rules.changes >= 1, START_S, "everything is loaded")
        measured.loading = _cpu(scheduler)
        began, before = time.monotonic(), measured.loading
        await asyncio.sleep(IDLE_SECONDS)  # what is measured is this time
        measured.idle = (_cpu(scheduler) - before) / (time.monotonic() - began) * 100
        measured.memory = scheduler.memory_info().rss / 1e6
    world.rules.present.clear()


async def _burst(world: World, measured: Measured) -> None:
    for number in range(DUE):
        world.rules.add(number + 1, 1, f"*/{EVERY_SECONDS} * * * * *")
    rounds = []
    with world.schedulers(0):
        for number in range(1, ROUNDS + 1):
            await until(lambda n=number: len(world.runs) >= n * DUE, START_S)  # type: ignore[misc]
            rounds.append(time.time() - max(planned for _, planned in world.runs) / 1000)
    assert len(set(world.runs)) == len(world.runs)
    measured.rounds = tuple(rounds)


async def _measure(redis_url: str, database_url: str) -> Measured:
    measured = Measured()
    async with World(redis_url, database_url, page=1_000).open() as world:
        await _idle(world, measured)
        await _burst(world, measured)
    return measured


def measure() -> str:
    """The page."""
    with (
        TemporaryDirectory(prefix="aemos-bench-") as folder,
        mariadb_server(Path(folder) / "mariadb") as database,
        redis_server(Path(folder)) as redis,
    ):
        found = asyncio.run(_measure(redis, database))
    rounds = ", ".join(f"{seconds:.2f}" for seconds in found.rounds)
    rows = [
        [f"{LOADED:,} schedules, nothing due, for {IDLE_SECONDS} s", f"{found.idle:.2f} % of a core", "2 % (goal 1 %)"],
        ["loading them", f"{found.loading:.1f} s of CPU, {found.memory:.0f} MB resident", "-"],
        [
            f"{DUE:,} due in the same second, until a worker has the last",
            f"{median(found.rounds):.2f} s ({rounds})",
            "5 s (goal 2 s)",
        ],
    ]
    note = "One scheduler process; MariaDB and Redis as for the other figures; rules is a fake that answers at once."
    return "\n".join([*header("scheduler"), note, "", *table(["work", "AEMOS", "must"], rows), ""])
