"""kill -9 of schedulers, again and again: every due instant is fired exactly once, and its run comes."""

from __future__ import annotations

import random
import subprocess
import time
from collections import Counter
from pathlib import Path

from aemos_core.times import now_ms

from tests.support.redis_server import redis_server, until
from tests.support.scheduler import START_S, World

SECONDS = 120.0
PERIODS = dict.fromkeys(range(1, 26), 1_000) | dict.fromkeys(range(26, 31), 3_000)
"""Chain id to the ms between its instants."""


async def test_each_instant_once_while_schedulers_are_killed(database_url: str, tmp_path: Path) -> None:
    """Three schedulers, one of them killed at random for two minutes: no instant is missing, none was fired twice."""
    chance = random.Random(time.time_ns())
    with redis_server(tmp_path) as redis:
        async with World(redis, database_url).open() as world:
            for chain, period in PERIODS.items():
                world.rules.add(chain, 1, f"*/{period // 1000} * * * * *")
            with world.schedulers(0, 0, 0) as processes:
                await until(lambda: len({chain for chain, _ in world.runs}) == len(PERIODS), START_S)
                kills = await _kill_again_and_again(world, processes, chance)
                ended_at = now_ms()
                fired = await _all_run(world, ended_at)
    assert kills > 10
    for chain, period in PERIODS.items():
        planned = sorted(at for each, at in fired if each == chain)
        assert planned == list(range(planned[0], planned[-1] + 1, period)), chain
        assert planned[-1] > ended_at - 2 * period
    twice = [run for run, times in Counter(world.runs).items() if times > 1]
    print(f"{kills} kills, {len(fired)} firings, {len(twice)} jobs that came twice")


async def _kill_again_and_again(world: World, processes: list[subprocess.Popen[bytes]], chance: random.Random) -> int:
    kills, until_at = 0, time.monotonic() + SECONDS
    while time.monotonic() < until_at:
        before, more = len(world.runs), chance.randrange(1, 150)
        await until(lambda: len(world.runs) >= before + more, 20, "runs while a scheduler is dead")  # noqa: B023
        index = chance.randrange(len(processes))
        processes[index].kill()
        processes[index].wait()
        processes[index] = world.start()
        kills += 1
    return kills


async def _all_run(world: World, ended_at: int) -> set[tuple[int, int]]:
    """(chain, planned time) of every firing until then, once the runs of all of them came."""
    deadline = time.monotonic() + START_S
    while True:
        fired = {(chain, at) for chain, at in await world.fired() if at <= ended_at}
        if fired <= set(world.runs) and max(at for _, at in fired) > ended_at - 2_000:
            return fired
        assert time.monotonic() < deadline, f"fired and not run: {sorted(fired - set(world.runs))[:10]}"
        await until(lambda: len(world.runs) > 0, 1)
