"""Use cases of the caller's own organization."""

from __future__ import annotations

from typing import Any

from aemos_core import audit
from aemos_core.database import Database
from aemos_core.errors import invalid, not_found
from aemos_core.identity import caller
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_ingest import tables as t
from aemos_ingest.domain import check_name
from aemos_ingest.registry_store import AnyRow

_MOST_DAYS = 36_500


class Organizations:
    """An organization is seen and changed by its own users only."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self) -> AnyRow:
        """The organization."""
        async with self._database.read() as connection:
            return await _own(connection)

    async def change(self, name: str | None, retention_days: int | None) -> AnyRow:
        """Changes what is given; readings older than `retention_days` are deleted from then on (0: none)."""
        values: dict[str, Any] = {} if name is None else {"name": check_name("name", name)}
        if retention_days is not None:
            if not 0 <= retention_days <= _MOST_DAYS:
                raise invalid("retentionDays", f"must be 0 to {_MOST_DAYS}")
            values["retention_days"] = retention_days
        async with self._database.write() as connection:
            found = await _own(connection)
            if values:
                own = t.organization.c.id == found.id
                await connection.execute(update(t.organization).where(own).values(**values))
                await audit.record(connection, t.audit, "organization.update", f"organization {found.id}")
            return await _own(connection)


async def _own(connection: AsyncConnection) -> AnyRow:
    query = select(t.organization).where(t.organization.c.id == caller().organization_id)
    row = (await connection.execute(query)).first()
    if row is None:
        raise not_found("organization")
    return row
