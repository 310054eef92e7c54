"""Partition leases on a real Redis."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import redis
from aemos_core.leases import PartitionLeases
from aemos_core.redis_link import open_redis

from tests.support.ports import free_port
from tests.support.redis_server import redis_server, until

pytestmark = pytest.mark.asyncio

PARTITIONS = 4
LEASE_S, RENEW_S, MARGIN_S = 2.0, 0.3, 0.5


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with redis_server(tmp_path) as address:
        yield address


@asynccontextmanager
async def member(url: str, *, lease_s: float = LEASE_S) -> AsyncIterator[PartitionLeases]:
    """One process' leases, running; leaving the block stops them."""
    stop = asyncio.Event()
    async with open_redis(url) as client:
        leases = PartitionLeases(client, PARTITIONS, lease_s=lease_s, renew_s=RENEW_S, margin_s=MARGIN_S)
        running = asyncio.create_task(leases.run(stop))
        try:
            yield leases
        finally:
            stop.set()
            await running


@contextmanager
def victim(url: str) -> Iterator[None]:
    """A process that is a member, killed with -9 at the end of the block."""
    command = [sys.executable, "-m", "tests.integration.test_leases", url]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        yield
    finally:
        process.kill()
        process.wait()


def sizes(*members: PartitionLeases) -> list[int]:
    """How many partitions each holds; asserts that none is held twice."""
    held = [leases.held() for leases in members]
    assert sum(map(len, held)) == len(frozenset().union(*held)), f"held twice: {held}"
    return sorted(map(len, held))


async def test_members_share_fairly(url: str) -> None:
    """Two members hold 2 and 2 of 4 partitions, three 2, 1 and 1; who leaves is replaced; none is ever held twice."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(member(url))
        await until(lambda: sizes(first) == [4], 5)
        second = await stack.enter_async_context(member(url))
        await until(lambda: sizes(first, second) == [2, 2], 5)
        async with member(url) as third:
            await until(lambda: sizes(first, second, third) == [1, 1, 2], 5)
            assert all(first.holds(p) + second.holds(p) + third.holds(p) == 1 for p in range(PARTITIONS))
        await until(lambda: sizes(first, second) == [2, 2], 5)


async def test_newcomer_has_its_share_after_about_one_renewal(url: str) -> None:
    """A newcomer waits for the others' next renewal and half a second, not for a lease to end."""
    async with member(url, lease_s=60) as first:
        await until(lambda: sizes(first) == [4], 5)
        async with member(url, lease_s=60) as second:
            await until(lambda: sizes(first, second) == [2, 2], RENEW_S + 0.5 + 1)


async def test_partitions_of_a_killed_process_are_taken_over(url: str) -> None:
    """What a process held that was killed with -9 belongs to the others after its lease and one renewal."""
    async with member(url) as survivor:
        await until(lambda: sizes(survivor) == [4], 5)
        with victim(url):
            await until(lambda: sizes(survivor) == [2], 15)
        await until(lambda: sizes(survivor) == [4], LEASE_S + RENEW_S + 1)


async def test_stopped_member_gives_back_at_once(url: str) -> None:
    """Stopping releases the partitions: nobody waits for a lease of a minute to end."""
    async with member(url, lease_s=60) as stays:
        async with member(url, lease_s=60) as leaves:
            await until(lambda: sizes(stays, leaves) == [2, 2], 5)
        await until(lambda: sizes(stays) == [4], 5)


async def test_stuck_process_loses_its_lease_before_redis_ends_it(url: str) -> None:
    """Without renewal `holds` turns false while the key in Redis still keeps others out."""
    async with member(url) as leases:
        await until(lambda: leases.holds(0), 5)
        deadline = time.monotonic() + LEASE_S + 1
        while leases.holds(0):  # the loop is blocked here, so nothing renews
            assert time.monotonic() < deadline
        with redis.Redis.from_url(url) as client:
            assert int(client.pttl("aemos:leases:partition:0")) > 0


async def test_leases_lapse_with_redis_and_come_back_with_it(tmp_path: Path) -> None:
    """While Redis is down nothing is held; when it is back everything is."""
    port = free_port()
    async with AsyncExitStack() as stack:
        with redis_server(tmp_path, port) as url:
            leases = await stack.enter_async_context(member(url))
            await until(lambda: sizes(leases) == [4], 5)
        await until(lambda: sizes(leases) == [0], LEASE_S + 1)
        with redis_server(tmp_path, port):
            await until(lambda: sizes(leases) == [4], LEASE_S + 2)


async def hold_for_ever(url: str) -> None:
    """The victim."""
    async with member(url):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(hold_for_ever(sys.argv[1]))
