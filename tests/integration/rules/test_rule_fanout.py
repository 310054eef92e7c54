"""One reading that very many chains judge, and chains that change while they are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

import pytest
from aemos.v1 import data_stream_pb2, job_pb2
from aemos_core.database import Database
from aemos_core.redis_link import RedisClient
from aemos_rules import chain_store
from aemos_rules import tables as t
from aemos_rules.domain import RuleChain
from aemos_rules.jobs import MOST_OF_DEVICE
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.support.play import SENSOR, act, node, reading
from tests.support.rule_worker import Worker, save_chain

CHAINS = 10_000


async def multiply(database: Database, chain_id: int, fire: int) -> None:
    """Makes 10,000 chains of one; the first of them assert a state of their own, the others stop."""
    async with database.write() as connection:
        (chain,) = (await connection.execute(select(t.rule_chain).where(t.rule_chain.c.id == chain_id))).all()
        state = {"organization_id": 1, "device_id": 42, "device_uuid": "abc-123", "default_value": "n", "value": "n"}
        state |= {"asserted_at_ms": 0, "asserted_reading_id": 0, "asserted_chain_id": 0}
        states = [{**state, "id": n, "name": str(n)} for n in range(1, fire + 1)]
        await connection.execute(insert(t.device_state), states)
        for first in range(1, CHAINS, 1_000):
            own = [n for n in range(first, first + 1_000) if n != chain_id]
            nodes = {n: chain.nodes.replace('"deviceStateId": 1', f'"deviceStateId": {n}') for n in own}
            nodes |= {n: nodes[n].replace("value > 25", "value > 99") for n in own if n > fire}
            await connection.execute(
                insert(t.rule_chain), [{**chain._mapping, "id": n, "nodes": nodes[n]} for n in own]
            )
            links = [{"rule_chain_id": n, "sensor_uuid": SENSOR} for n in own]
            await connection.execute(insert(t.rule_chain_sensor), links)


async def test_ten_thousand_chains_judge_one_reading(database: Database, redis: RedisClient) -> None:
    """All are run, and no transaction has to carry more than what MOST_OF_DEVICE of them say."""
    chain = await save_chain(database, node("condition", condition="value > 25"), act("a", 1))
    fire = 2 * MOST_OF_DEVICE + MOST_OF_DEVICE // 2
    await multiply(database, chain, fire)
    worker = Worker(database, redis)
    await worker.evaluate(reading(20, 0), reading(30, 1))
    told = [len(job_pb2.AnnouncementBatch.FromString(row.payload).announcements) for row in worker.outbox.sent]
    assert told == [MOST_OF_DEVICE, MOST_OF_DEVICE, MOST_OF_DEVICE // 2]
    judges = await worker.index.judges_of([SENSOR])
    activities = [chain.activity for chain in judges.of[SENSOR]]
    assert sum(one.fired + one.stopped for one in activities) == 2 * CHAINS
    async with database.read() as connection:
        values = dict(
            (
                await connection.execute(select(t.device_state.c.value, func.count()).group_by(t.device_state.c.value))
            ).all()
        )
    assert values == {"warning": fire}


async def test_a_job_of_many_devices_commits_in_parts(
    database: Database, redis: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No transaction has to carry more than what MOST_RUNS say; what no chain judges does not count."""
    monkeypatch.setattr("aemos_rules.jobs.MOST_RUNS", 4)
    action = node("saveReading", "f", "action", variableName="f", value="value")
    for _ in range(2):
        await save_chain(database, action)
    worker = Worker(database, redis)
    judged = [reading(n, n, variable=n)._replace(device_id=n) for n in range(1, 6)]
    others = [reading(n, n, variable=10 + n)._replace(sensor_uuid="nobody's") for n in range(1, 6)]
    await worker.evaluate(*chain.from_iterable(zip(judged, others, strict=True)))
    told = [data_stream_pb2.WriteReadingsRequest.FromString(row.payload).readings for row in worker.outbox.sent]
    assert [[one.value for one in readings] for readings in told] == [
        [b"1.0", b"1.0", b"2.0", b"2.0"],
        [b"3.0", b"3.0", b"4.0", b"4.0"],
        [b"5.0", b"5.0"],
    ]


async def test_a_change_while_chains_are_read_is_not_missed(
    database: Database, redis: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is told of a change while it reads the chain judges the next reading by the new one."""
    chain_id = await save_chain(database, node("condition", condition="value > 25"), act("a", 1))
    worker, load = Worker(database, redis), chain_store.load

    async def overtaken(connection: AsyncConnection, chain_ids: Iterable[int]) -> list[RuleChain]:
        chains = await load(connection, chain_ids)
        worker.index.forget()
        return chains

    monkeypatch.setattr(chain_store, "load", overtaken)
    await worker.evaluate(reading(30, 0))
    monkeypatch.setattr(chain_store, "load", load)
    async with database.write() as connection:
        (chain,) = await load(connection, [chain_id])
        await chain_store.save(connection, replace(chain, version=2), [SENSOR])
    (judged,) = (await worker.index.judges_of([SENSOR])).of[SENSOR]
    assert judged.chain.version == 2
