"""The ledger's tables and queries: what was announced, for longer than Redis keeps it."""

from __future__ import annotations

from collections.abc import Sequence

from aemos_core.database import TABLE_ARGS
from aemos_core.notification_log import Logged, LogId
from aemos_core.times import now_ms
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Index,
    MetaData,
    String,
    Table,
    Text,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.mysql import MEDIUMTEXT
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_notify.domain import Entry, Query

metadata = MetaData()
notification = Table(
    "notification",
    metadata,
    Column("organization_id", BigInteger, primary_key=True, autoincrement=False),
    Column("ms", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("type", String(100), nullable=False),
    Column("device_uuid", String(64), nullable=False),
    Column("body", Text().with_variant(MEDIUMTEXT, "mysql", "mariadb"), nullable=False),
    Column("recorded_at_ms", BigInteger, nullable=False),
    Column("rooms", Text),
    Index("notification_by_device", "organization_id", "device_uuid", "ms", "seq"),
    **TABLE_ARGS,
)
ledger_cursor = Table(
    "ledger_cursor",
    metadata,
    Column("organization_id", BigInteger, primary_key=True, autoincrement=False),
    Column("ms", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    **TABLE_ARGS,
)
_FORGOTTEN_AT_ONCE = 1_000
_n, _c = notification.c, ledger_cursor.c


async def cursor(connection: AsyncConnection, organization_id: int) -> LogId:
    """How far the organization's log is copied."""
    return await _cursor(connection, organization_id) or LogId()


async def append(connection: AsyncConnection, organization_id: int, entries: Sequence[Entry]) -> list[Entry]:
    """Adds what lies behind the cursor and moves it to the last of `entries` (in the log's order); returns those.

    Holding the cursor's row makes it safe to copy the same twice, also at the same time: the later one finds nothing
    left. Only the very first copies of an organization can collide; then one of them raises EXISTS and is tried again.
    """
    reached = await _cursor(connection, organization_id, hold=True)
    new = [entry for entry in entries if entry.log_id > (reached or LogId())]
    if not new:
        return []
    place = {"ms": new[-1].log_id.ms, "seq": new[-1].log_id.seq}
    if reached is None:
        await connection.execute(insert(ledger_cursor).values(organization_id=organization_id, **place))
    else:
        await connection.execute(update(ledger_cursor).where(_c.organization_id == organization_id).values(place))
    now = now_ms()
    await connection.execute(insert(notification), [_row(organization_id, entry, now) for entry in new])
    return new


async def entries(connection: AsyncConnection, organization_id: int, query: Query, limit: int) -> list[Entry]:
    """At most `limit` entries of an organization."""
    statement = select(_n.ms, _n.seq, _n.type, _n.device_uuid, _n.body)
    statement = statement.where(_n.organization_id == organization_id, *behind(query.after))
    if query.device_uuid:
        statement = statement.where(_n.device_uuid == query.device_uuid)
    rows = await connection.execute(statement.order_by(_n.ms, _n.seq).limit(limit))
    return [Entry(LogId(row.ms, row.seq), row.type, row.device_uuid, row.body) for row in rows]


async def entry(connection: AsyncConnection, organization_id: int, place: LogId) -> Entry | None:
    """The entry of an organization at a place."""
    statement = select(_n.ms, _n.seq, _n.type, _n.device_uuid, _n.body)
    at = (_n.organization_id == organization_id, _n.ms == place.ms, _n.seq == place.seq)
    row = (await connection.execute(statement.where(*at))).first()
    return Entry(place, row.type, row.device_uuid, row.body) if row else None


async def backwards(
    connection: AsyncConnection, organization_id: int, after: LogId, upto: LogId, limit: int
) -> list[Logged]:
    """At most `limit` entries of an organization behind `after`, up to `upto`, newest first."""
    statement = select(_n.ms, _n.seq, _n.type, _n.rooms, _n.body)
    not_behind = (_n.ms <= upto.ms, (_n.ms < upto.ms) | (_n.seq <= upto.seq))
    statement = statement.where(_n.organization_id == organization_id, *behind(after), *not_behind)
    rows = await connection.execute(statement.order_by(_n.ms.desc(), _n.seq.desc()).limit(limit))
    return [Logged(LogId(row.ms, row.seq), row.type, tuple((row.rooms or "").split()), row.body) for row in rows]


async def forget(connection: AsyncConnection, organization_id: int, before_ms: int) -> bool:
    """Removes what is older; of much, the oldest thousand or so: whether there is more."""
    old = (_n.organization_id == organization_id, _n.ms < before_ms)
    some = select(_n.ms).where(*old).order_by(_n.ms, _n.seq).offset(_FORGOTTEN_AT_ONCE).limit(1)
    upto = (await connection.execute(some)).scalar()
    await connection.execute(delete(notification).where(*old, *([] if upto is None else [_n.ms <= upto])))
    return upto is not None


async def organizations(connection: AsyncConnection) -> Sequence[int]:
    """Those that ever had a notification."""
    return (await connection.execute(select(_c.organization_id))).scalars().all()


async def _cursor(connection: AsyncConnection, organization_id: int, hold: bool = False) -> LogId | None:
    statement = select(_c.ms, _c.seq).where(_c.organization_id == organization_id)
    row = (await connection.execute(statement.with_for_update() if hold else statement)).first()
    return LogId(row.ms, row.seq) if row else None


def behind(after: LogId) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """The condition on the ledger: behind a place."""
    # Written so that the primary key is read from the right place: databases do not see that in (ms, seq) > (x, y).
    return _n.ms >= after.ms, (_n.ms > after.ms) | (_n.seq > after.seq)


def _row(organization_id: int, entry: Entry, now: int) -> dict[str, object]:
    return {
        "organization_id": organization_id,
        "ms": entry.log_id.ms,
        "seq": entry.log_id.seq,
        "type": entry.type,
        "device_uuid": entry.device_uuid,
        "body": entry.body,
        "recorded_at_ms": now,
        "rooms": entry.rooms,
    }
