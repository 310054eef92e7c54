"""Who changed what: a row in the transaction of the change itself."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, MetaData, String, Table, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_core.database import TABLE_ARGS, Id
from aemos_core.identity import caller
from aemos_core.times import now_ms


def audit_table(metadata: MetaData) -> Table:
    """The table, one in each owner's database."""
    return Table(
        "audit",
        metadata,
        Column("id", Id, primary_key=True),
        Column("at_ms", BigInteger, nullable=False, index=True),
        Column("organization_id", BigInteger, nullable=False),
        Column("user_id", BigInteger, nullable=False),
        Column("action", String(40), nullable=False),
        Column("target", String(200), nullable=False),
        **TABLE_ARGS,
    )


async def record(connection: AsyncConnection, table: Table, action: str, target: str, organization_id: int = 0) -> None:
    """Writes that the caller did `action`, such as "device.create", to `target`, such as "device 5".

    `organization_id` is whose it is when a service does it by itself.
    """
    who = caller()
    await connection.execute(
        insert(table).values(
            at_ms=now_ms(),
            organization_id=who.organization_id or organization_id,
            user_id=who.user_id,
            action=action,
            target=target[:200],
        )
    )
