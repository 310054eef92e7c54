"""ingest's stores on both databases: the registry inside one organization, and readings as they were sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind
from aemos_core.paging import Page
from aemos_core.times import now_ms
from aemos_ingest import history_store, readings_store, registry_store
from aemos_ingest import tables as t
from aemos_ingest.history_store import Cut
from aemos_ingest.readings_store import Message, ReadingIds
from aemos_ingest.registry_store import DEVICE, SENSOR, TOKEN, VARIABLE
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

OWN, OTHER = 1, 2
EVER = Cut(0, 2**53, 10)
TEN = Page(10, 0)


async def add_device(connection: AsyncConnection, uuid: str, organization: int = OWN) -> int:
    values = {"uuid": uuid, "name": "n", "creates_variables": True}
    return int((await registry_store.add(connection, DEVICE, organization, values)).id)


async def add_sensor(connection: AsyncConnection, device_id: int, uuid: str) -> int:
    values = {"device_id": device_id, "uuid": uuid, "name": "s"}
    return int((await registry_store.add(connection, SENSOR, OWN, values)).id)


async def add_variable(connection: AsyncConnection, sensor_id: int, name: str) -> int:
    values = {"sensor_id": sensor_id, "variable_name": name, "type": "number", "unit": ""}
    return int((await registry_store.add(connection, VARIABLE, OWN, values)).id)


async def add_token(connection: AsyncConnection, device_id: int, digest: bytes, sensor_id: int | None) -> Any:
    values = {"device_id": device_id, "sensor_id": sensor_id, "name": "", "token_sha256": digest}
    return await registry_store.add(connection, TOKEN, OWN, values)


async def test_names_are_found_by_id_and_by_uuid(database: Database) -> None:
    """Letter case counts, and a uuid may look like a number."""
    async with database.write() as connection:
        plain = await add_device(connection, "Pump-ÄÖ-🌡️")
        number = await add_device(connection, "123456")
        for reference, found in ((str(plain), plain), ("Pump-ÄÖ-🌡️", plain), ("123456", number)):
            assert (await registry_store.get(connection, DEVICE, OWN, reference)).id == found
        for reference in ("pump-äö-🌡️", "", "0", "²", "9" * 30):
            with pytest.raises(AemosError) as refused:
                await registry_store.get(connection, DEVICE, OWN, reference)
            assert refused.value.kind is Kind.NOT_FOUND


async def test_nothing_is_found_from_another_organization(database: Database) -> None:
    """Neither by id nor by uuid nor in a list."""
    async with database.write() as connection:
        device = await add_device(connection, "d")
        sensor = await add_sensor(connection, device, "s")
        variable = await add_variable(connection, sensor, "v")
        token = await add_token(connection, device, b"t" * 32, None)
        for looked_up in (
            registry_store.get(connection, DEVICE, OTHER, "d"),
            registry_store.get(connection, DEVICE, OTHER, str(device)),
            registry_store.get(connection, SENSOR, OTHER, "s"),
            registry_store.get(connection, VARIABLE, OTHER, str(variable)),
            registry_store.get(connection, TOKEN, OTHER, str(token.id)),
            registry_store.listed(connection, SENSOR, OTHER, TEN, "d"),
            registry_store.listed(connection, VARIABLE, OTHER, TEN, "s"),
            registry_store.listed(connection, TOKEN, OTHER, TEN, "d"),
        ):
            with pytest.raises(AemosError) as refused:
                await looked_up
            assert refused.value.kind is Kind.NOT_FOUND
        for entity in (DEVICE, SENSOR, VARIABLE, TOKEN):
            assert await registry_store.listed(connection, entity, OTHER, TEN) == ([], "")
            assert len((await registry_store.listed(connection, entity, OWN, TEN))[0]) == 1


@pytest.mark.parametrize("organization", [OWN, OTHER])
async def test_a_uuid_is_taken_once(database: Database, organization: int) -> None:
    """Also by another organization; the transaction that tried leaves nothing."""
    async with database.write() as connection:
        await add_device(connection, "d")

    async def take_it_again() -> None:
        async with database.write() as connection:
            await add_device(connection, "e", organization)
            await add_device(connection, "d", organization)

    with pytest.raises(AemosError) as refused:
        await take_it_again()
    assert refused.value.kind is Kind.EXISTS
    async with database.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(t.device))).scalar() == 1


async def test_lists_go_on_behind_an_id(database: Database) -> None:
    """A token says that there are more."""
    async with database.write() as connection:
        ids = [await add_device(connection, f"d{n}") for n in range(5)]
        first, token = await registry_store.listed(connection, DEVICE, OWN, Page(2, 0))
        rest, end = await registry_store.listed(connection, DEVICE, OWN, Page(10, int(token)))
    assert [row.id for row in (*first, *rest)] == ids
    assert (len(first), end) == (2, "")


async def test_a_device_goes_with_all_that_hangs_on_it(database: Database) -> None:
    """Sensors, variables and tokens; and who follows the changes learns of it."""
    async with database.write() as connection:
        device = await add_device(connection, "d")
        sensor = await add_sensor(connection, device, "s")
        await add_variable(connection, sensor, "v")
        await add_token(connection, device, b"\xff" * 32, sensor)
        kept = await add_device(connection, "kept")
        await registry_store.remove(connection, DEVICE, await registry_store.get(connection, DEVICE, OWN, "d"))
    async with database.read() as connection:
        for table, left in ((t.device, 1), (t.sensor, 0), (t.telemetry_data, 0), (t.device_token, 0)):
            assert (await connection.execute(select(func.count()).select_from(table))).scalar() == left
        assert set(await registry_store.changes_since(connection, now_ms())) == {device, kept}
        assert await registry_store.changes_since(connection, now_ms() + 60_000) == []
        actions = list((await connection.execute(select(t.audit.c.action))).scalars())
    assert (actions[0], actions[-1]) == ("device.create", "device.delete")


async def test_revoked_tokens_are_found_no_more(database: Database) -> None:
    """Digests are bytes: any byte may be in them, and one that is longer by a zero is another."""
    digests = [b"\0" * 32, b"\0" * 31 + b"\x01", bytes(range(200, 232))]
    async with database.write() as connection:
        device = await add_device(connection, "d")
        sensor = await add_sensor(connection, device, "s")
        bound = [sensor, None, None]
        made = [await add_token(connection, device, d, s) for d, s in zip(digests, bound, strict=True)]
        await registry_store.change(connection, TOKEN, made[2], {"revoked_at_ms": 5})
        for which in (t.device_token.c.token_sha256.in_(digests), t.device_token.c.id.in_([row.id for row in made])):
            rows = await registry_store.valid_tokens(connection, which)
            found = {(row.token_sha256, row.id, row.device_uuid, row.sensor_uuid) for row in rows}
            assert found == {(digests[0], made[0].id, "d", "s"), (digests[1], made[1].id, "d", None)}


async def test_a_sensor_without_variables_is_there(database: Database) -> None:
    """One row at least for each sensor, one for each variable."""
    async with database.write() as connection:
        device = await add_device(connection, "d")
        full, bare = [await add_sensor(connection, device, uuid) for uuid in ("full", "bare")]
        for name in ("a", "A"):
            await add_variable(connection, full, name)
        rows = await registry_store.variables_of(connection, t.sensor.c.device_id == device)
    assert [(row.sensor_id, row.variable_name or "") for row in rows] == [(full, "A"), (full, "a"), (bare, "")]


async def store(database: Database, rows: Sequence[readings_store.Values], names: readings_store.Messages) -> None:
    async with database.write() as connection:
        await readings_store.store(connection, rows, names)


def row(reading_id: int, at_ms: int = 1, value: str = "1", number: float | None = None) -> readings_store.Values:
    return (5, at_ms, reading_id, value, number, None)


async def test_ids_are_never_given_twice(database: Database) -> None:
    """Not by processes that reserve at the same time, nor after more than a block."""
    first, second = ReadingIds(database), ReadingIds(database)
    start = await first.take(1)
    taken = await asyncio.gather(*(ids.take(60_000) for ids in (second, first, second, first)))
    ranges = sorted([(start, 1), *((at, 60_000) for at in taken)])
    assert all(at + count <= after for (at, count), (after, _) in pairwise(ranges))
    assert await second.take(250_000) > start


async def test_readings_come_back_as_they_were_sent(database: Database) -> None:
    """Every text and number, up to 64 KiB and to the ends of what a double holds."""
    texts = ["25.5", "", "🌡️ مرحبا", "a\r\nb'\"\\%", "x" * 65_536, " trailing "]
    numbers = [25.5, 0.1, -0.0, 5e-324, 1.7976931348623157e308, None]
    sent = [row(n, n, text, number) for n, (text, number) in enumerate(zip(texts, numbers, strict=True), 1)]
    await store(database, sent, {})
    found = await history_store.page(database, [5], EVER)
    assert [(one.value, one.number) for one in found] == list(zip(texts, numbers, strict=True))


async def test_pages_of_readings_are_whole_and_in_order(database: Database) -> None:
    """By time, then id; the range takes its beginning and not its end; more than one insert holds is stored."""
    sent = [row(n, 10 + n // 500) for n in range(1, 2_501)]
    await store(database, sent, {})
    found: list[int] = []
    after = None
    while page := await history_store.page(database, [5], Cut(11, 14, 700, after=after)):
        found += [one.id for one in page]
        after = (page[-1].received_at_ms, page[-1].id)
    assert found == list(range(500, 2_000))
    assert not await history_store.page(database, [6], EVER)


@pytest.mark.parametrize("broken", ["reading", "message"])
async def test_a_batch_is_stored_whole_or_not(database: Database, broken: str) -> None:
    """Readings and what devices call them are one transaction."""
    named = {(7, "m"): Message(b"d" * 16, 1, 1)}
    if broken == "message":
        await store(database, [], named)
    sent = [row(1), row(2), row(1 if broken == "reading" else 3)]
    with pytest.raises(AemosError):
        await store(database, sent, named)
    assert not await history_store.page(database, [5], EVER)
    async with database.read() as connection:
        assert len(await readings_store.messages(connection, named)) == (broken == "message")
