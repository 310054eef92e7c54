"""The outbox on both databases: written with the change, sent after it, forgotten when settled, never orphaned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aemos_ingest
import pytest
from aemos_core.database import Database
from aemos_core.errors import AemosError
from aemos_core.outbox import Outbox, Row
from aemos_ingest.tables import outbox as tables
from sqlalchemy import func, select

from tests.integration.conftest import Open
from tests.support.redis_server import until

WITHIN_S = 10.0


@pytest.fixture
def service() -> str:
    return "ingest"


@pytest.fixture
async def others(open_owned: Open) -> Database:
    """The same database as another process has it."""
    return await open_owned(aemos_ingest)


class FakeSender:
    """Notes what it is given; settles it unless it is told to hold."""

    spacing = 0.0

    def __init__(self, keep_ms: int = 0) -> None:
        self.keep_ms = keep_ms
        self.sent: list[bytes] = []
        self.released = asyncio.Event()
        self.released.set()
        self.lost = False

    async def send(self, partition: int, rows: Sequence[Row]) -> None:
        self.sent += [row.payload for row in rows]
        await self.released.wait()

    async def lost_everything(self) -> bool:
        lost, self.lost = self.lost, False
        return lost


def outbox_of(database: Database, sender: FakeSender) -> Outbox:
    outbox = Outbox(database, tables)
    outbox.add_sender("job", sender)
    return outbox


@asynccontextmanager
async def running(outbox: Outbox) -> AsyncIterator[None]:
    """Runs it, known to the others from the first line of the block on; retires it in order at the end."""
    stop = asyncio.Event()
    task = asyncio.create_task(outbox.run(stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(WITHIN_S):
            await task


async def rows_left(database: Database) -> int:
    async with database.read() as connection:
        return int((await connection.execute(select(func.count()).select_from(tables.rows))).scalar_one())


async def until_left(database: Database, count: int) -> None:
    async with asyncio.timeout(WITHIN_S):
        while await rows_left(database) != count:  # noqa: ASYNC110  a condition of the database
            await asyncio.sleep(0.02)


async def write(database: Database, outbox: Outbox, *payloads: bytes) -> list[Row]:
    async with database.write() as connection:
        return await outbox.add(connection, [Row("job", 0, payload) for payload in payloads])


async def owner_of(database: Database, outbox: Outbox) -> str | None:
    async with database.read() as connection:
        query = select(tables.relays.c.owner).where(tables.relays.c.id == outbox.relay_id)
        return (await connection.execute(query)).scalar()


async def until_owned(database: Database, outbox: Outbox, owner: str) -> None:
    async with asyncio.timeout(WITHIN_S):
        while await owner_of(database, outbox) != owner:  # noqa: ASYNC110  a condition of the database
            await asyncio.sleep(0.02)


async def test_what_goes_at_once_does_not_wait_behind_what_is_kept(database: Database) -> None:
    """Announcements stay for ten minutes; jobs that were settled after them are forgotten all the same."""
    outbox, announced = outbox_of(database, FakeSender()), FakeSender(keep_ms=600_000)
    outbox.add_sender("announce", announced)
    async with running(outbox):
        async with database.write() as connection:
            first = await outbox.add(connection, [Row("announce", 0, b"kept")])
        outbox.committed(first)
        await until(lambda: announced.sent == [b"kept"], WITHIN_S)
        async with database.write() as connection:
            jobs = await outbox.add(connection, [Row("job", 0, b"a"), Row("job", 0, b"b")])
        outbox.committed(jobs)
        await until_left(database, 1)


async def test_what_is_settled_is_forgotten(database: Database) -> None:
    """Rows are numbered in their transaction, sent in order after it, and deleted when they are settled."""
    sender = FakeSender()
    outbox = outbox_of(database, sender)
    payloads = [bytes([n]) for n in range(50)] + [b"\0" * 100_000]
    rows = await write(database, outbox, *payloads)
    assert [row.seq for row in rows] == list(range(1, 52))
    assert (sender.sent, await rows_left(database)) == ([], 51)
    sender.released.clear()
    async with running(outbox):
        outbox.committed(rows)
        await until(lambda: sender.sent == payloads, WITHIN_S)
        assert await rows_left(database) == 51
        sender.released.set()
        await until_left(database, 0)


async def test_a_transaction_that_fails_announces_nothing(database: Database) -> None:
    """What was written with it is gone with it."""
    outbox = outbox_of(database, FakeSender())

    async def change_that_fails() -> None:
        async with database.write() as connection:
            await outbox.add(connection, [Row("job", 0, b"1")])
            raise OSError

    with pytest.raises(AemosError):
        await change_that_fails()
    assert await rows_left(database) == 0


async def test_what_is_kept_goes_again_when_redis_lost_it(database: Database) -> None:
    """Settled announcements stay for their time, and are sent a second time only when Redis is not what it was."""
    sender = FakeSender(keep_ms=60_000)
    outbox = outbox_of(database, sender)
    async with running(outbox):
        outbox.committed(await write(database, outbox, b"1", b"2"))
        await until(lambda: sender.sent == [b"1", b"2"], WITHIN_S)
        sender.lost = True
        await until(lambda: sender.sent == [b"1", b"2"] * 2, WITHIN_S)
        assert await rows_left(database) == 2


async def test_rows_of_one_that_stopped_are_adopted(database: Database, others: Database) -> None:
    """What a process left when it stopped in order is sent by another one, in its order, and deleted."""
    first, second = FakeSender(), FakeSender()
    stopped, adopter = outbox_of(database, first), outbox_of(others, second)
    async with running(stopped):
        await write(database, stopped, b"1", b"2", b"3")
    async with running(adopter):
        await until_left(database, 0)
    assert (first.sent, second.sent) == ([], [b"1", b"2", b"3"])


async def test_one_that_was_only_slow_takes_its_rows_back(database: Database, others: Database) -> None:
    """Taken for dead while it lives, it is a relay of its own again; when it does die it is adopted once more."""
    first, second = FakeSender(), FakeSender()
    slow, adopter = outbox_of(database, first), outbox_of(others, second)
    second.released.clear()
    async with running(adopter):
        async with running(slow):
            await until_owned(database, slow, slow.relay_id)
        await write(database, slow, b"1")  # after it gave itself up, as one that was frozen does when it thaws
        await until_owned(database, slow, adopter.relay_id)
        await until(lambda: second.sent == [b"1"], WITHIN_S)
        async with running(slow):
            await until_owned(database, slow, slow.relay_id)
            await write(database, slow, b"2")
        second.released.set()
        await until(lambda: second.sent == [b"1", b"2"], WITHIN_S)
        await until_left(database, 0)


async def test_rows_of_one_that_nobody_heard_of_are_adopted(database: Database, others: Database) -> None:
    """It died before its first heartbeat, or committed after its last."""
    sender = FakeSender()
    adopter = outbox_of(others, sender)
    await write(database, outbox_of(database, FakeSender()), b"1")
    async with running(adopter):
        await until(lambda: sender.sent == [b"1"], WITHIN_S)
        await write(database, outbox_of(database, FakeSender()), b"2")
        await until(lambda: sender.sent == [b"1", b"2"], WITHIN_S)
        await until_left(database, 0)


async def test_a_commit_that_was_cut_short_is_looked_for(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller was told that it failed; the row is there all the same, and is sent."""
    monkeypatch.setattr("aemos_core.outbox._UNSURE_SECONDS", 0.0)
    sender = FakeSender()
    outbox = outbox_of(database, sender)
    async with running(outbox):
        await write(database, outbox, b"1")
        await until(lambda: sender.sent == [b"1"], WITHIN_S)
        await until_left(database, 0)


async def test_what_a_dead_process_left_goes_before_what_its_successor_commits(
    database: Database, others: Database
) -> None:
    """Until the dead one is known to be dead; a device's readings are judged in their order also after a crash."""
    sender = FakeSender()
    dead, successor = outbox_of(database, FakeSender()), outbox_of(others, sender)
    killed = asyncio.create_task(dead.run(asyncio.Event()))
    await until_owned(database, dead, dead.relay_id)
    await write(database, dead, b"1", b"2")
    killed.cancel()
    async with running(successor):
        successor.committed(await write(others, successor, b"3"))
        await until(lambda: len(sender.sent) == 3, WITHIN_S)
    assert sender.sent == [b"1", b"2", b"3"]
