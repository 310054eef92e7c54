"""The ledger's tables and queries: what was announced, for longer than Redis keeps it, and how far users have read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aemos_core.database import TABLE_ARGS
from aemos_core.notification_log import BEGINNING, END, Logged, LogId
from aemos_core.times import now_ms
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Index,
    MetaData,
    Select,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.mysql import MEDIUMTEXT
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_notify import codec

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
read_cursor = Table(
    "read_cursor",
    metadata,
    Column("organization_id", BigInteger, primary_key=True, autoincrement=False),
    Column("user_id", BigInteger, primary_key=True, autoincrement=False),
    Column("ms", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    **TABLE_ARGS,
)
_FORGOTTEN_AT_ONCE = 1_000
_n, _c, _r = notification.c, ledger_cursor.c, read_cursor.c


async def reached(connection: AsyncConnection, organization_id: int) -> LogId:
    """How far the organization's log is copied."""
    query = select(_c.ms, _c.seq).where(_c.organization_id == organization_id)
    return await _place(connection, query) or BEGINNING


async def append(connection: AsyncConnection, organization_id: int, entries: Sequence[Logged]) -> list[Logged]:
    """Adds what lies behind the cursor and moves it to the last of `entries` (in the log's order); returns those.

    Holding the cursor's row makes it safe to copy the same twice, also at the same time: the later one finds nothing
    left. Only the very first copies of an organization can collide; then one of them raises EXISTS and is tried again.
    """
    query = select(_c.ms, _c.seq).where(_c.organization_id == organization_id).with_for_update()
    known = await _place(connection, query)
    new = [entry for entry in entries if entry.id > (known or BEGINNING)]
    if not new:
        return []
    place = new[-1].id._asdict()
    if known is None:
        await connection.execute(insert(ledger_cursor).values(organization_id=organization_id, **place))
    else:
        await connection.execute(update(ledger_cursor).where(_c.organization_id == organization_id).values(place))
    common = {"organization_id": organization_id, "recorded_at_ms": now_ms()}
    await connection.execute(insert(notification), [{**common, **codec.entry_to_row(entry)} for entry in new])
    return new


async def entries(
    connection: AsyncConnection,
    organization_id: int,
    after: LogId,
    limit: int,
    *,
    upto: LogId = END,
    device_uuid: str = "",
    newest_first: bool = False,
) -> list[Logged]:
    """At most `limit` entries of an organization behind `after`, up to `upto`, oldest first unless asked otherwise; of
    one device unless that is empty."""
    not_behind = (_n.ms <= upto.ms, (_n.ms < upto.ms) | (_n.seq <= upto.seq))
    query = select(_n.ms, _n.seq, _n.type, _n.rooms, _n.body).where(
        _n.organization_id == organization_id, *_behind(after), *(not_behind if upto != END else ())
    )
    if device_uuid:
        query = query.where(_n.device_uuid == device_uuid)
    order = (_n.ms.desc(), _n.seq.desc()) if newest_first else (_n.ms, _n.seq)
    rows = await connection.execute(query.order_by(*order).limit(limit))
    return [Logged(LogId(row.ms, row.seq), row.type, tuple((row.rooms or "").split()), row.body) for row in rows]


async def entry(connection: AsyncConnection, organization_id: int, place: LogId) -> Logged | None:
    """The entry of an organization at a place."""
    return next(iter(await entries(connection, organization_id, place.before(), 1, upto=place)), None)


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


async def read_until(connection: AsyncConnection, organization_id: int, user_id: int) -> LogId:
    """How far a user has read."""
    query = select(_r.ms, _r.seq).where(_r.organization_id == organization_id, _r.user_id == user_id)
    return await _place(connection, query) or BEGINNING


async def unread(connection: AsyncConnection, organization_id: int, place: LogId, most: int) -> int:
    """How many notifications lie behind a place, at most so many."""
    found = select(_n.ms).where(_n.organization_id == organization_id, *_behind(place)).limit(most).subquery()
    return int((await connection.execute(select(func.count()).select_from(found))).scalar_one())


async def move_read_cursor(connection: AsyncConnection, organization_id: int, user_id: int, to: LogId) -> None:
    """Moves a user's cursor forward; never back."""
    mine = (_r.organization_id == organization_id) & (_r.user_id == user_id)
    forward = (_r.ms < to.ms) | ((_r.ms == to.ms) & (_r.seq < to.seq))
    changed = await connection.execute(update(read_cursor).where(mine, forward).values(to._asdict()))
    if changed.rowcount == 0 and (await connection.execute(select(_r.ms).where(mine))).first() is None:
        values = {"organization_id": organization_id, "user_id": user_id, **to._asdict()}
        await connection.execute(insert(read_cursor).values(**values))


def _behind(after: LogId) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    # Written so that the primary key is read from the right place: databases do not see that in (ms, seq) > (x, y).
    return _n.ms >= after.ms, (_n.ms > after.ms) | (_n.seq > after.seq)


async def _place(connection: AsyncConnection, query: Select[Any]) -> LogId | None:
    row = (await connection.execute(query)).first()
    return LogId(row.ms, row.seq) if row else None
