"""Subscriptions and deliveries in the database, and as the contract has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from aemos.v1 import subscription_pb2 as pb
from aemos_core import audit
from aemos_core.audit import audit_table
from aemos_core.database import TABLE_ARGS, Id
from aemos_core.errors import not_found
from aemos_core.notification_log import LogId
from aemos_core.outbox import OutboxTables
from aemos_core.times import now_ms, to_timestamp
from google.protobuf import json_format
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
    case,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_notify.store import metadata
from aemos_notify.subscriptions import MOST_REPEATS, OPEN, Filter, Status, filter_json

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
    # How often it was sent again; of one that is suppressed, how many more of the same hour it stands for.
    Column("repeats", Integer, nullable=False),
    Column("answer", String(500), nullable=False),
    Column("queued_at_ms", BigInteger, nullable=False),
    Column("sent_at_ms", BigInteger),
    # When to look at it again: to repeat it, or because a job was lost.
    Column("due_at_ms", BigInteger),
    UniqueConstraint("subscription_id", "ms", "seq", name="delivery_once"),
    Index("delivery_by_organization", "organization_id", "id"),
    Index("delivery_by_status", "organization_id", "status", "id"),
    Index("delivery_lately", "subscription_id", "queued_at_ms", "status"),
    Index("delivery_due", "due_at_ms"),
    **TABLE_ARGS,
)
_s, _d = subscription.c, delivery.c
_SAVED = (
    *("id", "name", "enabled", "channel", "target"),
    *("subject_template", "body_template", "hourly_limit", "repeat_minutes"),
)
"""Columns that are fields of the contract as they are."""
_HOUR_MS = 60 * 60 * 1000
_AT_ONCE = 2_000


class Wanted(NamedTuple):
    """What of a subscription says whether, and how often, it is told."""

    id: int
    filter: Filter
    hourly_limit: int


class Lately(NamedTuple):
    """Of a subscription within the last hour: how many deliveries, and the id of the one that stands for those over
    its limit, or 0."""

    number: int
    suppressed_id: int


def subscription_of(row: AnyRow) -> pb.Subscription:
    """A row as the contract has it, without its secrets."""
    found = pb.Subscription(**{name: getattr(row, name) for name in _SAVED}, created_at=to_timestamp(row.created_at_ms))
    json_format.Parse(row.filter, found.filter)
    return found


def secrets_of(row: AnyRow, now: int) -> list[str]:
    """Those that sign now, the newest first: the old one of a row signs until its time."""
    return [row.secret] + ([row.old_secret] if row.old_secret and now < row.old_until_ms else [])


def delivery_of(row: AnyRow) -> pb.Delivery:
    """A row as the contract has it."""
    over = "over the hourly limit" + (f", with {row.repeats} more of this hour" if row.repeats else "")
    return pb.Delivery(
        id=row.id,
        subscription_id=row.subscription_id,
        notification_id=str(LogId(row.ms, row.seq)),
        status=row.status,
        attempts=row.attempts,
        answer=over if row.status == Status.SUPPRESSED else row.answer,
        queued_at=to_timestamp(row.queued_at_ms),
        sent_at=None if row.sent_at_ms is None else to_timestamp(row.sent_at_ms),
    )


async def create(connection: AsyncConnection, organization_id: int, draft: pb.Subscription) -> AnyRow:
    """Adds a subscription, whose id is given here."""
    values = {name: getattr(draft, name) for name in (*_SAVED, "secret") if name != "id"}
    unsaid = {"old_secret": "", "old_until_ms": 0, "created_at_ms": now_ms(), "filter": filter_json(draft.filter)}
    inserted = await connection.execute(
        insert(subscription).values(organization_id=organization_id, **values, **unsaid)
    )
    made = int(inserted.inserted_primary_key[0])  # type: ignore[index]
    await audit.record(connection, audit_rows, "subscription.create", f"subscription {made}")
    return await get(connection, organization_id, made)


async def change(
    connection: AsyncConnection, organization_id: int, subscription_id: int, changes: Mapping[str, Any]
) -> AnyRow:
    """Sets columns of a subscription; the others stay what somebody else may just have made them."""
    if changes:
        mine = (_s.organization_id == organization_id) & (_s.id == subscription_id)
        await connection.execute(update(subscription).where(mine).values(**changes))
    await audit.record(connection, audit_rows, "subscription.update", f"subscription {subscription_id}")
    return await get(connection, organization_id, subscription_id)


async def get(connection: AsyncConnection, organization_id: int, subscription_id: int) -> AnyRow:
    """A subscription of an organization."""
    query = select(subscription).where(_s.organization_id == organization_id, _s.id == subscription_id)
    row = (await connection.execute(query)).first()
    if row is None:
        raise not_found("subscription")
    return row


async def page(connection: AsyncConnection, organization_id: int, after: int, limit: int) -> Sequence[AnyRow]:
    """At most limit + 1 subscriptions behind an id."""
    query = select(subscription).where(_s.organization_id == organization_id, _s.id > after)
    return (await connection.execute(query.order_by(_s.id).limit(limit + 1))).all()


async def remove(connection: AsyncConnection, subscription_id: int) -> bool:
    """Deletes a subscription with its deliveries; not all of them at once: whether it is gone."""
    oldest = select(_d.id).where(_d.subscription_id == subscription_id).limit(_AT_ONCE)
    ids = (await connection.execute(oldest)).scalars().all()
    await connection.execute(delete(delivery).where(_d.id.in_(ids)))
    if len(ids) == _AT_ONCE:
        return False
    await connection.execute(delete(subscription).where(_s.id == subscription_id))
    await audit.record(connection, audit_rows, "subscription.delete", f"subscription {subscription_id}")
    return True


async def count(connection: AsyncConnection, organization_id: int) -> int:
    """How many an organization has."""
    query = select(func.count()).select_from(subscription).where(_s.organization_id == organization_id)
    return int((await connection.execute(query)).scalar_one())


async def enabled(connection: AsyncConnection, organization_id: int) -> list[Wanted]:
    """Those of an organization that are on."""
    query = select(_s.id, _s.filter, _s.hourly_limit).where(_s.organization_id == organization_id, _s.enabled)
    rows = (await connection.execute(query)).all()
    return [Wanted(row.id, msgspec.json.decode(row.filter, type=Filter), row.hourly_limit) for row in rows]


async def lately(connection: AsyncConnection, subscription_ids: Iterable[int]) -> dict[int, Lately]:
    """Of each that had any delivery within the last hour."""
    is_suppressed = _d.status == Status.SUPPRESSED
    query = (
        select(
            _d.subscription_id,
            func.sum(case((is_suppressed, 0), else_=1)).label("number"),
            func.max(case((is_suppressed, _d.id), else_=0)).label("suppressed_id"),
        )
        .where(_d.subscription_id.in_(sorted(subscription_ids)), _d.queued_at_ms > now_ms() - _HOUR_MS)
        .group_by(_d.subscription_id)
    )
    found = (await connection.execute(query)).all()
    return {row.subscription_id: Lately(int(row.number), row.suppressed_id) for row in found}


async def queue(
    connection: AsyncConnection, organization_id: int, rows: Sequence[Mapping[str, Any]]
) -> Sequence[AnyRow]:
    """Adds deliveries: subscription_id, ms, seq and status of each, and what else is not new of them; id,
    subscription_id and channel of those that are to be sent. Nobody else adds any of this organization meanwhile."""
    newest = select(func.max(_d.id)).where(_d.organization_id == organization_id)
    before = (await connection.execute(newest)).scalar_one() or 0
    fresh = {
        "organization_id": organization_id,
        "attempts": 0,
        "repeats": 0,
        "answer": "",
        "queued_at_ms": now_ms(),
    }
    await connection.execute(insert(delivery), [{**fresh, **row} for row in rows])
    mine = (_d.organization_id == organization_id, _d.id > before, _d.status == Status.QUEUED)
    query = select(_d.id, _d.subscription_id, _s.channel).join(subscription).where(*mine)
    return (await connection.execute(query.order_by(_d.id))).all()


async def suppress_more(connection: AsyncConnection, numbers: Mapping[int, int]) -> None:
    """Counts up what suppressed deliveries stand for: by id, how many more."""
    for number in sorted(set(numbers.values())):
        ids = sorted(each for each, more in numbers.items() if more == number)
        await connection.execute(update(delivery).where(_d.id.in_(ids)).values(repeats=_d.repeats + number))


async def forget(connection: AsyncConnection, organization_id: int, before_ms: int) -> bool:
    """Removes deliveries that are older; not all of them at once: whether there may be more."""
    oldest = select(_d.id, _d.queued_at_ms).where(_d.organization_id == organization_id).order_by(_d.id)
    rows = (await connection.execute(oldest.limit(_AT_ONCE))).all()
    old = [row.id for row in rows if row.queued_at_ms < before_ms]
    await connection.execute(delete(delivery).where(_d.id.in_(old)))
    return len(old) == _AT_ONCE


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


async def note(connection: AsyncConnection, delivery_id: int, **values: Any) -> None:
    """Sets columns of a delivery that is still to be sent: an attempt does not undo what users did meanwhile."""
    still_open = (_d.id == delivery_id) & _d.status.in_(OPEN)
    await connection.execute(update(delivery).where(still_open).values(**values))


async def take_due(connection: AsyncConnection, now: int, again_ms: int, most: int) -> list[AnyRow]:
    """Deliveries to look at again, which are then due `again_ms` later: nobody else takes them meanwhile."""
    columns = (_d.id, _d.subscription_id, _d.status, _d.repeats, _d.due_at_ms, _s.channel)
    query = select(*columns).join(subscription).where(_d.due_at_ms <= now)
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
