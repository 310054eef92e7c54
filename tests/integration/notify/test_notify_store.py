"""The ledger's store on both databases: each entry once, in the log's order, found by page and by device."""

from __future__ import annotations

import asyncio
import json

import pytest
from aemos_core.database import Database, open_database
from aemos_core.errors import AemosError, Kind
from aemos_core.notification_log import Logged, LogId
from aemos_notify import store

OWN, OTHER = 1, 2
FIRST = LogId()


def entry(ms: int, seq: int = 0, device: str = "d1", **more: str) -> Logged:
    body = json.dumps({"deviceUuid": device, **more}, ensure_ascii=False)
    return Logged(LogId(ms, seq), "device-state-change", ("room", "other"), body)


async def append(database: Database, *entries: Logged, organization: int = OWN) -> None:
    async with database.write() as connection:
        await store.append(connection, organization, entries)


async def found(database: Database, after: LogId = FIRST, device: str = "", organization: int = OWN) -> list[Logged]:
    async with database.read() as connection:
        return await store.entries(connection, organization, after, 100, device_uuid=device)


async def test_what_is_copied_again_is_there_once(database: Database) -> None:
    """Also when the copies overlap; the cursor stands at the last one."""
    entries = [entry(5, 0), entry(5, 1), entry(2**45, 2**60), entry(2**45, 2**60 + 1)]
    await append(database, *entries[:2])
    await append(database, *entries[:3])
    await append(database, *entries[1:])
    await append(database, *entries[:1])
    assert await found(database) == entries
    async with database.read() as connection:
        assert await store.reached(connection, OWN) == entries[-1].id
        assert await store.reached(connection, OTHER) == FIRST
    assert await found(database, organization=OTHER) == []


@pytest.mark.parametrize(("after", "left"), [(LogId(5, 0), 3), (LogId(5, 1), 2), (LogId(6, 9), 1), (LogId(7, 0), 0)])
async def test_entries_are_read_behind_a_place(database: Database, after: LogId, left: int) -> None:
    """A place is milliseconds and a count within them, and need not be an entry's."""
    entries = [entry(5, 0), entry(5, 1), entry(6, 0), entry(7, 0)]
    await append(database, *entries)
    assert await found(database, after) == entries[4 - left :]


async def test_a_devices_entries_are_its_own(database: Database) -> None:
    """Letter case counts, and bodies are kept to the letter."""
    own = entry(2, a="🌡️ مرحبا", c="x" * 100_000)
    await append(database, entry(1, device="D1"), own, entry(3, device="d2"))
    assert await found(database, device="d1") == [own]


async def test_two_copy_at_the_same_time(database: Database, database_url: str) -> None:
    """Each entry is there once; of the very first copies one may be refused as EXISTS, and is tried again."""
    entries = [entry(n) for n in range(1, 200)]
    async with open_database(database_url) as another:
        first = await asyncio.gather(
            *(append(own, *entries[:100]) for own in (database, another)), return_exceptions=True
        )
        assert all(isinstance(one, AemosError) and one.kind is Kind.EXISTS for one in first if one is not None)
        await asyncio.gather(*(append(own, *entries) for own in (database, another, database, another)))
    assert [one.id.ms for one in await found(database)] == list(range(1, 101))
    assert len(await found(database, LogId(100, 0))) == 99
