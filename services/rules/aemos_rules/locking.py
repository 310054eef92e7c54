"""Rows that are locked by their ids, hundreds at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aemos_core.records import AnyRow
from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncConnection

_AT_ONCE = 900
"""From 1,000 on MariaDB 10.11 joins a temporary table of them, and sorts afterwards (EXPLAIN): rows would be locked in
no order, and two transactions could wait for each other."""


async def locked(
    connection: AsyncConnection, table: Table, ids: Iterable[int], *columns: str, shared: bool = False
) -> Sequence[AnyRow]:
    """The rows that there are, in order of id, with these columns or all. Until the transaction ends nobody else
    changes them, nor, unless `shared`, locks them."""
    # The ids are in the text, for hundreds of parameters cost more than the rows. Without the option the driver would
    # prepare each text, and push out the statements that come again.
    select = f"SELECT {', '.join(columns or table.c.keys())} FROM {table.name} WHERE id IN"
    lock = "" if connection.dialect.name == "sqlite" else " LOCK IN SHARE MODE" if shared else " FOR UPDATE"
    wanted, rows = sorted(ids), list[AnyRow]()
    for start in range(0, len(wanted), _AT_ONCE):
        some = ",".join(map(str, wanted[start : start + _AT_ONCE]))
        query = f"{select} ({some}) ORDER BY id{lock}"
        rows += (await connection.exec_driver_sql(query, execution_options={"no_parameters": True})).all()
    return rows
