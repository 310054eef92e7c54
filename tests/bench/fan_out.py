"""Ten thousand chains on one reading: what it costs whoever sends meanwhile, and how long the rules take (hard case 30)."""

from __future__ import annotations

import asyncio
import time

from aemos_core.database import open_database
from aemos_core.identity import Caller, set_caller
from aemos_rules import chain_store
from aemos_rules.domain import Node, RuleChain

from tests.bench.latency import Client
from tests.bench.support import Installation, installation, median, quantile

CHAINS = 10_000
_IN_TRANSACTION = 50
ROUNDS = 5
_SAMPLES = 100
_PAUSE_SECONDS = 0.015


async def _chains(inst: Installation, sensor: str) -> None:
    """They pass every reading, and do nothing with it."""
    condition = {"sensorUUID": sensor, "condition": "value > 0"}
    nodes = (
        Node("filter", "filter", condition),
        Node("transform", "transform", {"action": "convertToFahrenheit"}),
    )
    set_caller(Caller(1, 1, "admin"))
    async with open_database(inst.database_url.format(service="rules")) as database:
        for some in range(0, CHAINS, _IN_TRANSACTION):
            async with database.write() as connection:
                for number in range(some, some + _IN_TRANSACTION):
                    chain = RuleChain(0, 1, f"fan-out {number}", True, 1, nodes, False, "", "UTC")
                    await chain_store.save(connection, chain, [sensor])


async def _client(inst: Installation, device: int) -> Client:
    host, port = inst.stack.demo["httpUrl"].removeprefix("http://").split(":")
    return Client(*await asyncio.open_connection(host, port), inst.stack.demo["devices"][device]["token"])


async def _acknowledged(client: Client) -> list[float]:
    """Milliseconds from a POST to its 201."""
    times = []
    for _ in range(_SAMPLES):
        began = time.perf_counter()
        await client.post(20)
        times.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(_PAUSE_SECONDS)
    return times


async def _fan_out(inst: Installation) -> list[list[str]]:
    await _chains(inst, inst.stack.demo["devices"][0]["sensorUuid"])
    narrow = await _client(inst, 1)
    idle = await _acknowledged(narrow)
    wide = await _client(inst, 0)
    await wide.post(20)
    first = await asyncio.to_thread(inst.seconds_behind)
    wide, narrow = await _client(inst, 0), await _client(inst, 1)
    took, busy = [], []
    for _ in range(ROUNDS):
        await wide.post(20)
        busy += await _acknowledged(narrow)
        took.append(await asyncio.to_thread(inst.seconds_behind))
    work = (
        f"POST -> 201 of a device while {CHAINS:,} chains judge a reading of another each 2 s; without them, p50 (p99)"
    )
    figures = "; ".join(f"{median(times):.1f} ms ({quantile(times, 0.99):.1f})" for times in (busy, idle))
    behind = f"{first:.1f} s the first time, when they are compiled; {median(took):.1f} s behind after 2 s"
    return [[work, figures, "-", "-"], ["those runs of one reading", behind, "-", "-"]]


def measure() -> list[list[str]]:
    """Rows of a page."""
    with installation(2) as inst:
        return asyncio.run(_fan_out(inst))
