"""The registry in ingest, on both databases: devices with labels, and their tokens."""

from __future__ import annotations

from hashlib import sha256

import aemos_ingest
import pytest
from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind
from aemos_core.paging import Page
from aemos_core.times import now_ms
from aemos_ingest import tables
from aemos_ingest.labels import labels_of
from aemos_ingest.registry_service import MOST_OVERLAP_SECONDS
from aemos_ingest.registry_store import DEVICE, TOKEN
from sqlalchemy import select

from tests.integration.conftest import Open
from tests.support.ingest import ingest, refusal
from tests.support.redis_server import until

DAY_MS = 24 * 60 * 60 * 1000
SOON_MS = 10_000


def digest(secret: str) -> bytes:
    return sha256(secret.encode()).digest()


@pytest.fixture
async def database(open_owned: Open) -> Database:
    return await open_owned(aemos_ingest)


async def test_devices_are_listed_by_label(database: Database) -> None:
    """Key and value count to the letter, and a page ends where the next begins."""
    async with ingest(database) as one:
        registry = one.registry
        for uuid, site in (("a", "North"), ("b", "north"), ("c", "North"), ("d", 'No"rth'), ("e", "North")):
            await registry.create_device(uuid, uuid, True, {"site": site, "kind": "pump"})
        first, token = await registry.page(DEVICE, Page(2, 0), label="site=North")
        rest, end = await registry.page(DEVICE, Page(2, int(token)), label="site=North")
        assert ([row.uuid for row in first], [row.uuid for row in rest], end) == (["a", "c"], ["e"], "")
        assert [row.uuid for row in (await registry.page(DEVICE, Page(9, 0), label='site=No"rth'))[0]] == ["d"]
        assert len((await registry.page(DEVICE, Page(9, 0)))[0]) == 6


async def test_an_update_changes_what_it_gives(database: Database) -> None:
    """Labels one by one, attributes as a whole, and nothing else."""
    async with ingest(database) as one:
        await one.registry.create_device("n", "d", True, {"site": "north", "floor": "3"}, '{"a":1}')
        row = await one.registry.update_device("d", {}, {"floor": "", "rack": "7"})
        assert (labels_of(row.labels), row.attributes) == ({"site": "north", "rack": "7"}, '{"a":1}')
        row = await one.registry.update_device("d", {"attributes": "{}", "name": "m"})
        assert (row.name, labels_of(row.labels), row.attributes) == ("m", {"site": "north", "rack": "7"}, "{}")


async def test_sensors_are_described_to_their_own_organization(database: Database) -> None:
    """By the types of their variables; a sensor without any is there, another organization's is not."""
    async with ingest(database) as one:
        await one.registry.create_sensor("freezer-1", "Bare", "bare")
        described = {"sensor-1": {"temperature": "number"}, "bare": {}}
        assert await one.registry.describe_sensors(1, ["sensor-1", "bare", "nowhere"]) == described
        assert await one.registry.describe_sensors(2, ["sensor-1"]) == {}


async def test_a_token_is_rotated_with_an_overlap(database: Database) -> None:
    """The new one has name, sensor and lifetime of the old one, which lives for the overlap only."""
    async with ingest(database) as one:
        expires = now_ms() + 90 * DAY_MS
        old, secret = await one.registry.create_token("freezer-1", "door", "sensor-1", expires)
        new, fresh = await one.registry.rotate_token("freezer-1", old.id, 60)
        assert (new.name, new.sensor_uuid) == ("door", "sensor-1")
        assert abs(new.expires_at_ms - expires) < SOON_MS
        found = await one.registry.resolve_tokens([digest(secret), digest(fresh)])
        assert [found[digest(each)].id for each in (secret, fresh)] == [old.id, new.id]
        rows, _ = await one.registry.page(TOKEN, Page(10, one.token_id), "freezer-1")
        assert [row.id for row in rows] == [old.id, new.id]
        assert abs(rows[0].expires_at_ms - now_ms() - 60_000) < SOON_MS


async def test_without_an_overlap_the_old_token_ends_at_once(database: Database) -> None:
    """Everywhere, also for readings; what has ended cannot be rotated."""
    async with ingest(database) as one, ingest(database, like=one) as other:
        assert [r.id > 0 for r in await other.write(one.reading())] == [True]
        await one.registry.rotate_token("freezer-1", one.token_id, 0)
        await other.sources.refresh()
        assert [refusal(r) for p in (one, other) for r in await p.write(one.reading())] == ["unauthenticated"] * 2
        with pytest.raises(AemosError) as refused:
            await one.registry.rotate_token("freezer-1", one.token_id, 0)
        assert refused.value.kind is Kind.STALE


async def test_a_token_expires(database: Database) -> None:
    """For whoever asks for it, and for readings of whoever did."""
    async with ingest(database) as one:
        token, secret = await one.registry.create_token("freezer-1", "short", expires_at_ms=now_ms() + 300)
        one.token_id = token.id
        assert (await one.write(one.reading()))[0].id > 0
        await until(lambda: now_ms() > token.expires_at_ms, 5)
        assert refusal((await one.write(one.reading()))[0]) == "unauthenticated"
        assert not await one.registry.resolve_tokens([digest(secret)])


@pytest.mark.parametrize("seconds", [-1, MOST_OVERLAP_SECONDS + 1])
async def test_an_overlap_out_of_bounds_is_refused(database: Database, seconds: int) -> None:
    """INVALID names it."""
    async with ingest(database) as one:
        with pytest.raises(AemosError) as refused:
            await one.registry.rotate_token("freezer-1", one.token_id, seconds)
        assert refused.value.errors[0].loc == "overlapSeconds"


async def test_the_audit_says_who_did_what_to_a_token(database: Database) -> None:
    """Made, rotated, revoked; a second time is nothing."""
    async with ingest(database) as one:
        token, _ = await one.registry.create_token("freezer-1", "t")
        new, _ = await one.registry.rotate_token("freezer-1", token.id, 60)
        for _ in range(2):
            await one.registry.revoke_token("freezer-1", new.id)
        async with database.read() as connection:
            rows = (await connection.execute(select(tables.audit).order_by(tables.audit.c.id))).all()
        done = [(r.action.removeprefix("device_token."), r.target, r.user_id) for r in rows[-4:]]
        first, second = f"token {token.id}", f"token {new.id}"
        assert done == [("create", first, 1), ("create", second, 1), ("rotate", first, 1), ("revoke", second, 1)]


async def test_who_was_seen_is_written_in_batches(database: Database) -> None:
    """A device each time, a token at most once a minute; a reading by itself writes neither."""
    async with ingest(database) as one:

        async def seen() -> tuple[int | None, int | None]:
            rows, _ = await one.registry.page(TOKEN, Page(1, 0), "freezer-1")
            return (await one.registry.get(DEVICE, "freezer-1")).last_seen_at_ms, rows[0].last_used_at_ms

        await one.write(one.reading())
        assert await seen() == (None, None)
        await one.sightings.write()
        device, token = await seen()
        assert device == token is not None
        await until(lambda: now_ms() > device, 5)
        await one.write(one.reading())
        await one.sightings.write()
        later, same = await seen()
        assert later > device
        assert same == token
