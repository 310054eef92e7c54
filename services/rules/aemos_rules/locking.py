"""Rows that are locked by their ids, hundreds at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aemos_core.records import AnyRow
from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncConnection


async def locked(
    connection: AsyncConnection, table: Table, ids: Iterable[int], *columns: str, shared: bool = False
) -> Sequence[AnyRow]:
    """The rows that there are, in order of id, with these columns or all. Until the transaction ends nobody else
    changes them, nor, unless `shared`, locks them."""
    # The ids are in the text, for hundreds of parameters cost more than the rows; 0 is the id of none. Without the
    # option the driver would prepare each text, and push out the statements that come again.
    names, wanted = ", ".join(columns or table.c.keys()), ",".join(map(str, (0, *ids)))
    query = f"SELECT {names} FROM {table.name} WHERE id IN ({wanted}) ORDER BY id"
    if connection.dialect.name != "sqlite":
        query += " LOCK IN SHARE MODE" if shared else " FOR UPDATE"
    return (await connection.exec_driver_sql(query, execution_options={"no_parameters": True})).all()
