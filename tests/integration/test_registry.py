"""The registry in ingest, on both databases: devices with labels, and their tokens."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import aemos_ingest
import pytest
from aemos.v1 import device_pb2 as pb
from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind
from aemos_core.times import now_ms, to_timestamp
from aemos_ingest import tables
from aemos_ingest.registry_api import MOST_OVERLAP_SECONDS
from google.protobuf.struct_pb2 import Struct
from sqlalchemy import select

from tests.integration.conftest import Open
from tests.support.ingest import Ingest, ingest, refusal
from tests.support.redis_server import until
from tests.support.registry import call

DAY_MS = 24 * 60 * 60 * 1000
SOON_MS = 10_000


async def resolved(one: Ingest, *tokens: pb.DeviceToken) -> list[int]:
    """What ingest takes secrets for: a token's id, or 0."""
    digests = [sha256(token.token.encode()).digest() for token in tokens]
    answer = await call(one.registry.identity.ResolveDeviceTokens, token_sha256=digests)
    return [device.token_id for device in answer.devices]


@pytest.fixture
async def database(open_owned: Open) -> Database:
    return await open_owned(aemos_ingest)


async def test_devices_are_listed_by_label(database: Database) -> None:
    """Key and value count to the letter, and a page ends where the next begins."""
    async with ingest(database) as one:
        registry = one.registry
        for uuid, site in (("a", "North"), ("b", "north"), ("c", "North"), ("d", 'No"rth'), ("e", "North")):
            await registry.create_device(uuid, uuid, labels={"site": site, "kind": "pump"})

        async def listed(**fields: Any) -> tuple[list[str], str]:
            answer = await call(registry.devices.ListDevices, **fields)
            return [device.uuid for device in answer.devices], answer.next_page_token

        first, token = await listed(page_size=2, label="site=North")
        rest = await listed(page_size=2, page_token=token, label="site=North")
        assert (first, rest) == (["a", "c"], (["e"], ""))
        assert await listed(label='site=No"rth') == (["d"], "")
        assert len((await listed())[0]) == 6


async def test_an_update_changes_what_it_gives(database: Database) -> None:
    """Labels one by one, attributes as a whole, and nothing else."""
    async with ingest(database) as one:
        update, given = one.registry.devices.UpdateDevice, Struct()
        given.update({"a": 1})
        await one.registry.create_device("n", "d", labels={"site": "north", "floor": "3"}, attributes=given)
        device = await call(update, device="d", labels={"floor": "", "rack": "7"})
        assert (dict(device.labels), device.attributes) == ({"site": "north", "rack": "7"}, given)
        device = await call(update, device="d", attributes=Struct(), name="m")
        assert (device.name, dict(device.labels)) == ("m", {"site": "north", "rack": "7"})
        assert device.attributes == Struct()
        assert device == await call(update, device="d")


async def test_sensors_are_described_to_their_own_organization(database: Database) -> None:
    """By the types of their variables; a sensor without any is there, another organization's is not."""
    async with ingest(database) as one:
        sensors = one.registry.sensors
        await call(sensors.CreateSensor, device="freezer-1", name="Bare", uuid="bare")

        async def described(organization_id: int) -> dict[str, dict[str, str]]:
            uuids = ["sensor-1", "bare", "nowhere"]
            answer = await call(sensors.DescribeSensors, organization_id=organization_id, sensor_uuids=uuids)
            return {one.sensor_uuid: dict(one.variable_types) for one in answer.sensors}

        assert await described(1) == {"sensor-1": {"temperature": "number"}, "bare": {}}
        assert await described(2) == {}


async def test_a_token_is_rotated_with_an_overlap(database: Database) -> None:
    """The new one has name, sensor and lifetime of the old one, which lives for the overlap only."""
    async with ingest(database) as one:
        expires = now_ms() + 90 * DAY_MS
        old = await one.registry.create_token("door", sensor_uuid="sensor-1", expires_at=to_timestamp(expires))
        new = await one.registry.rotate_token(old.id, 60)
        assert (new.name, new.sensor_uuid) == ("door", "sensor-1")
        assert abs(new.expires_at.ToMilliseconds() - expires) < SOON_MS
        assert await resolved(one, old, new) == [old.id, new.id]
        tokens = await one.registry.tokens(page_token=str(one.token_id))
        assert [token.id for token in tokens] == [old.id, new.id]
        assert abs(tokens[0].expires_at.ToMilliseconds() - now_ms() - 60_000) < SOON_MS
        again = await one.registry.rotate_token(old.id, 60)  # whose first answer was lost
        assert abs(again.expires_at.ToMilliseconds() - expires) < SOON_MS
        lasting = await one.registry.create_token("lasting")
        await one.registry.rotate_token(lasting.id, 60)
        assert not (await one.registry.rotate_token(lasting.id, 60)).HasField("expires_at")


async def test_without_an_overlap_the_old_token_ends_at_once(database: Database) -> None:
    """Everywhere, also for readings; what has ended cannot be rotated."""
    async with ingest(database) as one, ingest(database, like=one) as other:
        assert [r.id > 0 for r in await other.write(one.reading())] == [True]
        await one.registry.rotate_token(one.token_id, 0)
        await other.sources.refresh()
        assert [refusal(r) for p in (one, other) for r in await p.write(one.reading())] == ["unauthenticated"] * 2
        with pytest.raises(AemosError) as refused:
            await one.registry.rotate_token(one.token_id, 0)
        assert refused.value.kind is Kind.STALE


async def test_a_token_expires(database: Database) -> None:
    """For whoever asks for it, and for readings of whoever did."""
    async with ingest(database) as one:
        token = await one.registry.create_token("short", expires_at=to_timestamp(now_ms() + 300))
        one.token_id = token.id
        assert (await one.write(one.reading()))[0].id > 0
        await until(lambda: now_ms() > token.expires_at.ToMilliseconds(), 5)
        assert refusal((await one.write(one.reading()))[0]) == "unauthenticated"
        assert await resolved(one, token) == [0]


async def test_a_token_for_ever_is_rotated(database: Database) -> None:
    """The new one ends in 9999 as the old one, not later, when no calendar goes on; nor does one that is made."""
    async with ingest(database) as one:
        never = 253_402_300_799_000
        token = await one.registry.create_token(expires_at=to_timestamp(never))
        before = now_ms()
        await until(lambda: now_ms() > before + 1_000, 5)
        assert (await one.registry.rotate_token(token.id, 60)).expires_at.ToMilliseconds() == never + 999
        with pytest.raises(AemosError) as refused:
            await one.registry.create_token(expires_at=to_timestamp(never + 1_000))
        assert refused.value.errors[0].loc == "expiresAt"


@pytest.mark.parametrize("seconds", [-1, MOST_OVERLAP_SECONDS + 1])
async def test_an_overlap_out_of_bounds_is_refused(database: Database, seconds: int) -> None:
    """INVALID names it."""
    async with ingest(database) as one:
        with pytest.raises(AemosError) as refused:
            await one.registry.rotate_token(one.token_id, seconds)
        assert refused.value.errors[0].loc == "overlapSeconds"


async def test_the_audit_says_who_did_what_to_a_token(database: Database) -> None:
    """Made, rotated, revoked; a second time is nothing."""
    async with ingest(database) as one:
        token = await one.registry.create_token()
        new = await one.registry.rotate_token(token.id, 60)
        for _ in range(2):
            await one.registry.revoke_token(new.id)
        async with database.read() as connection:
            rows = (await connection.execute(select(tables.audit).order_by(tables.audit.c.id))).all()
        done = [(r.action.removeprefix("device_token."), r.target, r.user_id) for r in rows[-4:]]
        first, second = f"token {token.id}", f"token {new.id}"
        assert done == [("create", first, 1), ("create", second, 1), ("rotate", first, 1), ("revoke", second, 1)]


async def test_who_was_seen_is_written_in_batches(database: Database) -> None:
    """A device each time, a token at most once a minute; a reading by itself writes neither."""
    async with ingest(database) as one:

        async def seen() -> tuple[int, int]:
            device, (token, *_) = await one.registry.device(), await one.registry.tokens()
            return device.last_seen_at.ToMilliseconds(), token.last_used_at.ToMilliseconds()

        await one.write(one.reading())
        assert await seen() == (0, 0)
        await one.sightings.write()
        device, token = await seen()
        assert device == token > 0
        await until(lambda: now_ms() > device, 5)
        await one.write(one.reading())
        await one.sightings.write()
        later, same = await seen()
        assert later > device
        assert same == token


async def test_when_a_device_was_seen_moves_forward_only(database: Database) -> None:
    """A process that writes late what it saw does not undo what another one saw after that."""
    async with ingest(database) as one, ingest(database, like=one) as other:
        for process in (one, other):
            before = now_ms()
            await until(lambda: now_ms() > before, 5)  # noqa: B023  it is done before the next one
            await process.write(one.reading())
        for process in (other, one):
            await process.sightings.write()
        device, (token, *_) = await one.registry.device(), await one.registry.tokens()
        assert min(device.last_seen_at.ToMilliseconds(), token.last_used_at.ToMilliseconds()) > before
