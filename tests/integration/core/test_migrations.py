"""Migrations: from nothing to the newest revision, on both databases."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from aemos_core.database import Database
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, LargeBinary, MetaData

from tests.integration.conftest import Open

TABLES = {
    "ingest": "aemos_ingest.tables",
    "rules": "aemos_rules.tables",
    "scheduler": "aemos_scheduler.tables",
    "notify": "aemos_notify.store",
}
MORE_TABLES = ["aemos_notify.subscription_store"]
"""Importing them adds their tables to their service's metadata, whichever tests ran before."""


def _length_is_kept_otherwise(*types: Any) -> bool | None:
    """A server makes BLOB(32) the smallest blob that holds it and forgets the figure; of all else Alembic judges."""
    declared = types[-1]
    return False if type(declared) is LargeBinary and declared.length else None


@pytest.mark.parametrize("service", TABLES)
async def test_revisions_make_the_tables_of_the_code(database: Database, open_owned: Open, service: str) -> None:
    """Nothing is missing, left over or of another type; and migrating again changes nothing."""
    metadata: MetaData = importlib.import_module(TABLES[service]).metadata
    for module in MORE_TABLES:
        importlib.import_module(module)

    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": _length_is_kept_otherwise})
        return compare_metadata(context, metadata)

    await open_owned(importlib.import_module(f"aemos_{service}"))
    async with database.read() as connection:
        assert await connection.run_sync(differences) == []
