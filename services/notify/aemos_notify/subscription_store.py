"""Subscriptions, deliveries and read cursors in the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from aemos_core import audit
from aemos_core.audit import audit_table
from aemos_core.database import TABLE_ARGS, Id
from aemos_core.errors import not_found
from aemos_core.notification_log import LogId
from aemos_core.outbox import OutboxTables
from aemos_core.times import now_ms
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    delete,
    func,
    insert,
    select,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_notify.store import metadata
from aemos_notify.subscriptions import MOST_REPEATS, Filter, Status, Subscription

AnyRow = Any
"""A row of a query, whose columns the query names."""
outbox = OutboxTables(metadata)
audit_rows = audit_table(metadata)
subscription = Table(
    "subscription",
    metadata,
    Column("id", Id, primary_key=True),
    Column("organization_id", BigInteger, nullable=False),
    Column("name", String(200), nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("channel", String(20), nullable=False),
    Column("target", String(2000), nullable=False),
    Column("filter", Text, nullable=False),
    Column("subject_template", String(1000), nullable=False),
    Column("body_template", Text, nullable=False),
    Column("hourly_limit", Integer, nullable=False),
    Column("repeat_minutes", Integer, nullable=False),
    Column("secret", String(100), nullable=False),
    Column("old_secret", String(100), nullable=False),
    Column("old_until_ms", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Index("subscription_by_organization", "organization_id", "id"),
    **TABLE_ARGS,
)
delivery = Table(
    "delivery",
    metadata,
    Column("id", Id, primary_key=True),
    Column("organization_id", BigInteger, nullable=False),
    Column("subscription_id", Id, ForeignKey("subscription.id", ondelete="CASCADE"), nullable=False),
    Column("ms", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("status", String(20), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("repeats", Integer, nullable=False),
    Column("answer", String(500), nullable=False),
    Column("queued_at_ms", BigInteger, nullable=False),
    Column("sent_at_ms", BigInteger),
    # When to look at it again: to repeat it, or because a job was lost.
    Column("due_at_ms", BigInteger),
    UniqueConstraint("subscription_id", "ms", "seq", name="delivery_once"),
    Index("delivery_by_organization", "organization_id", "id"),
    Index("delivery_by_subscription", "subscription_id", "queued_at_ms"),
    Index("delivery_due", "due_at_ms"),
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
_s, _d, _r = subscription.c, delivery.c, read_cursor.c
_HOUR_MS = 60 * 60 * 1000


def subscription_of(row: AnyRow) -> Subscription:
    """A row as notify knows it."""
    values = {key: value for key, value in row._mapping.items() if key != "filter"}
    return Subscription(filter=msgspec.json.decode(row.filter, type=Filter), **values)


def _values(draft: Subscription) -> dict[str, Any]:
    names = ("name", "enabled", "channel", "target", "subject_template", "body_template", "hourly_limit")
    more = ("repeat_minutes", "secret", "old_secret", "old_until_ms")
    values = {name: getattr(draft, name) for name in (*names, *more)}
    return values | {"filter": msgspec.json.encode(draft.filter).decode()}


async def save(connection: AsyncConnection, draft: Subscription) -> Subscription:
    """Inserts a subscription (id 0) or replaces it."""
    if draft.id:
        await connection.execute(update(subscription).where(_s.id == draft.id).values(**_values(draft)))
        saved, verb = draft.id, "update"
    else:
        values = {**_values(draft), "organization_id": draft.organization_id, "created_at_ms": now_ms()}
        inserted = await connection.execute(insert(subscription).values(**values))
        saved, verb = int(inserted.inserted_primary_key[0]), "create"  # type: ignore[index]
    await audit.record(connection, audit_rows, f"subscription.{verb}", f"subscription {saved}")
    return await get(connection, draft.organization_id, saved)


async def get(connection: AsyncConnection, organization_id: int, subscription_id: int) -> Subscription:
    """A subscription of an organization."""
    query = select(subscription).where(_s.organization_id == organization_id, _s.id == subscription_id)
    row = (await connection.execute(query)).first()
    if row is None:
        raise not_found("subscription")
    return subscription_of(row)


async def page(connection: AsyncConnection, organization_id: int, after: int, limit: int) -> list[Subscription]:
    """At most limit + 1 subscriptions behind an id."""
    query = select(subscription).where(_s.organization_id == organization_id, _s.id > after)
    rows = (await connection.execute(query.order_by(_s.id).limit(limit + 1))).all()
    return [subscription_of(row) for row in rows]


async def remove(connection: AsyncConnection, subscription_id: int) -> None:
    """Deletes a subscription with its deliveries."""
    await connection.execute(delete(subscription).where(_s.id == subscription_id))
    await audit.record(connection, audit_rows, "subscription.delete", f"subscription {subscription_id}")


async def count(connection: AsyncConnection, organization_id: int) -> int:
    """How many an organization has."""
    query = select(func.count()).select_from(subscription).where(_s.organization_id == organization_id)
    return int((await connection.execute(query)).scalar_one())


async def enabled(connection: AsyncConnection, organization_id: int) -> list[Subscription]:
    """Those of an organization that are on."""
    query = select(subscription).where(_s.organization_id == organization_id, _s.enabled)
    return [subscription_of(row) for row in (await connection.execute(query)).all()]


async def sent_lately(connection: AsyncConnection, subscription_ids: Iterable[int]) -> dict[int, int]:
    """How many deliveries each had within the last hour, suppressed ones aside."""
    query = (
        select(_d.subscription_id, func.count().label("number"))
        .where(_d.subscription_id.in_(sorted(subscription_ids)), _d.queued_at_ms > now_ms() - _HOUR_MS)
        .where(_d.status != Status.SUPPRESSED)
        .group_by(_d.subscription_id)
    )
    return {row.subscription_id: row.number for row in (await connection.execute(query)).all()}


async def queue(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds deliveries: organization_id, subscription_id, ms, seq, status and due_at_ms of each."""
    fresh = {"attempts": 0, "repeats": 0, "answer": "", "queued_at_ms": now_ms()}
    await connection.execute(insert(delivery), [{**fresh, **row} for row in rows])


async def ids_of(connection: AsyncConnection, organization_id: int, places: Sequence[LogId]) -> list[AnyRow]:
    """Id and subscription of the queued deliveries of these notifications."""
    query = select(_d.id, _d.subscription_id).where(
        _d.organization_id == organization_id,
        _d.status == Status.QUEUED,
        tuple_(_d.ms, _d.seq).in_(sorted({(place.ms, place.seq) for place in places})),
    )
    return list((await connection.execute(query)).all())


async def get_delivery(connection: AsyncConnection, organization_id: int, delivery_id: int) -> AnyRow:
    """A delivery of an organization."""
    query = select(delivery).where(_d.organization_id == organization_id, _d.id == delivery_id)
    row = (await connection.execute(query)).first()
    if row is None:
        raise not_found("delivery")
    return row


async def find_delivery(connection: AsyncConnection, delivery_id: int) -> AnyRow | None:
    """A delivery of any organization: for the worker."""
    return (await connection.execute(select(delivery).where(_d.id == delivery_id))).first()


async def list_deliveries(
    connection: AsyncConnection, organization_id: int, subscription_id: int, status: str, before: int, limit: int
) -> Sequence[AnyRow]:
    """At most limit + 1 deliveries, newest first, before an id unless that is 0."""
    query = select(delivery).where(_d.organization_id == organization_id)
    for column, wanted in ((_d.subscription_id, subscription_id), (_d.status, status)):
        if wanted:
            query = query.where(column == wanted)
    if before:
        query = query.where(_d.id < before)
    return (await connection.execute(query.order_by(_d.id.desc()).limit(limit + 1))).all()


async def change_delivery(connection: AsyncConnection, delivery_id: int, **values: Any) -> None:
    """Sets columns of a delivery."""
    await connection.execute(update(delivery).where(_d.id == delivery_id).values(**values))


async def take_due(connection: AsyncConnection, now: int, again_ms: int, most: int) -> list[AnyRow]:
    """Deliveries to look at again, which are then due `again_ms` later: nobody else takes them meanwhile."""
    query = select(_d.id, _d.subscription_id, _d.status, _d.repeats, _d.due_at_ms).where(_d.due_at_ms <= now)
    taken = []
    for row in (await connection.execute(query.order_by(_d.due_at_ms).limit(most))).all():
        is_over = row.status == Status.SENT and row.repeats >= MOST_REPEATS
        values: dict[str, Any] = {"due_at_ms": None if is_over else now + again_ms}
        if row.status == Status.SENT and not is_over:
            values |= {"status": Status.QUEUED, "attempts": 0, "repeats": row.repeats + 1}
        claim = update(delivery).where(_d.id == row.id, _d.due_at_ms == row.due_at_ms)
        if (await connection.execute(claim.values(**values))).rowcount == 1 and not is_over:
            taken.append(row)
    return taken


async def read_until(connection: AsyncConnection, organization_id: int, user_id: int) -> LogId:
    """How far a user has read."""
    query = select(_r.ms, _r.seq).where(_r.organization_id == organization_id, _r.user_id == user_id)
    row = (await connection.execute(query)).first()
    return LogId(row.ms, row.seq) if row else LogId()


async def move_cursor(connection: AsyncConnection, organization_id: int, user_id: int, to: LogId) -> None:
    """Moves a user's cursor forward."""
    mine = (_r.organization_id == organization_id) & (_r.user_id == user_id)
    changed = await connection.execute(update(read_cursor).where(mine).values(ms=to.ms, seq=to.seq))
    if changed.rowcount == 0 and (await connection.execute(select(_r.ms).where(mine))).first() is None:
        values = {"organization_id": organization_id, "user_id": user_id, "ms": to.ms, "seq": to.seq}
        await connection.execute(insert(read_cursor).values(**values))
