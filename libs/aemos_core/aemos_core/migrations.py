"""Migrations: Alembic revisions beside each store, run by one function. Only the `migrate` commands import this."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import op
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.schema import SchemaItem

from aemos_core.database import TABLE_ARGS, open_database


async def migrate(url: str, directory: Path) -> None:
    """Brings a database to the newest of the Alembic revisions under `directory`, making it when it is missing."""
    await _create_missing(url)
    async with open_database(url) as database, database.engine.connect() as connection:
        await connection.execution_options(aemos_write=True)
        await connection.run_sync(_upgrade, directory)
        await connection.commit()


def create_table(name: str, *columns: SchemaItem, **options: Any) -> None:
    """Inside a revision: makes a table as all of them are in MySQL, with the indexes that its columns ask for."""
    op.create_table(name, *columns, **options, **TABLE_ARGS)


async def _create_missing(url: str) -> None:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        Path(parsed.database or "").parent.mkdir(parents=True, exist_ok=True)
        return
    engine = create_async_engine(parsed.set(database=""), connect_args={"connect_timeout": 5, "read_timeout": 10})
    try:
        async with engine.begin() as connection:
            name = engine.dialect.identifier_preparer.quote_identifier(parsed.database or "")
            await connection.exec_driver_sql(f"CREATE DATABASE IF NOT EXISTS {name} CHARACTER SET utf8mb4")
    finally:
        await engine.dispose()


def _upgrade(connection: Connection, directory: Path) -> None:
    script = ScriptDirectory(str(directory))
    with EnvironmentContext(Config(), script, fn=lambda rev, _: script._upgrade_revs("head", rev)) as environment:
        environment.configure(connection=connection, target_metadata=None)
        environment.run_migrations()
