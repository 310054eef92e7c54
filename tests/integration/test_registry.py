"""The registry in ingest, on both databases: devices with labels, and their tokens."""

from __future__ import annotations

import aemos_ingest
import pytest
from aemos_core.database import Database
from aemos_core.paging import Page
from aemos_ingest.labels import labels_of

from tests.integration.conftest import Open
from tests.support.ingest import ingest


@pytest.fixture
async def database(open_owned: Open) -> Database:
    return await open_owned(aemos_ingest)


async def test_devices_are_listed_by_label(database: Database) -> None:
    """Key and value count to the letter, and a page ends where the next begins."""
    async with ingest(database) as one:
        registry = one.registry
        for uuid, site in (("a", "North"), ("b", "north"), ("c", "North"), ("d", 'No"rth'), ("e", "North")):
            await registry.create_device(uuid, uuid, True, {"site": site, "kind": "pump"})
        first, token = await registry.devices(Page(2, 0), "site=North")
        rest, end = await registry.devices(Page(2, int(token)), "site=North")
        assert ([row.uuid for row in first], [row.uuid for row in rest], end) == (["a", "c"], ["e"], "")
        assert [row.uuid for row in (await registry.devices(Page(9, 0), 'site=No"rth'))[0]] == ["d"]
        assert len((await registry.devices(Page(9, 0)))[0]) == 6


async def test_an_update_changes_what_it_gives(database: Database) -> None:
    """Labels one by one, attributes as a whole, and nothing else."""
    async with ingest(database) as one:
        await one.registry.create_device("n", "d", True, {"site": "north", "floor": "3"}, '{"a":1}')
        row = await one.registry.update_device("d", {}, {"floor": "", "rack": "7"})
        assert (labels_of(row.labels), row.attributes) == ({"site": "north", "rack": "7"}, '{"a":1}')
        row = await one.registry.update_device("d", {"attributes": "{}", "name": "m"})
        assert (row.name, labels_of(row.labels), row.attributes) == ("m", {"site": "north", "rack": "7"}, "{}")
