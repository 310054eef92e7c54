"""Subscriptions and deliveries in the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from aemos.v1 import subscription_pb2 as pb
from aemos_core import audit
from aemos_core.audit import audit_table
from aemos_core.database import TABLE_ARGS, Id
from aemos_core.outbox import OutboxTables
from aemos_core.paging import Page
from aemos_core.records import AnyRow, listed, own
from aemos_core.sweeping import delete_found
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
    *("name", "enabled", "channel", "target", "subject_template", "body_template"),
    *("hourly_limit", "repeat_minutes", "secret"),
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


def secrets_of(row: AnyRow, now: int) -> list[str]:
    """Those that sign now, the newest first: the old one of a row signs until its time."""
    return [row.secret] + ([row.old_secret] if row.old_secret and now < row.old_until_ms else [])


async def create(connection: AsyncConnection, organization_id: int, draft: pb.Subscription) -> int:
    """Adds a subscription; the id that it got."""
    values = {name: getattr(draft, name) for name in _SAVED}
    unsaid = {"old_secret": "", "old_until_ms": 0, "created_at_ms": now_ms(), "filter": filter_json(draft.filter)}
    inserted = await connection.execute(
        insert(subscription).values(organization_id=organization_id, **values, **unsaid)
    )
    made = int(inserted.inserted_primary_key[0])  # type: ignore[index]
    await audit.record(connection, audit_rows, "subscription.create", f"subscription {made}")
    return made


async def change(connection: AsyncConnection, subscription_id: int, changes: Mapping[str, Any]) -> AnyRow:
    """Sets columns of one of the caller's; the others stay what somebody else may just have made them."""
    found = await own(connection, subscription, subscription_id)
    if changes:
        await connection.execute(update(subscription).where(_s.id == found.id).values(**changes))
    await audit.record(connection, audit_rows, "subscription.update", f"subscription {subscription_id}")
    return await own(connection, subscription, subscription_id)


async def remove(connection: AsyncConnection, subscription_id: int) -> bool:
    """Turns one of the caller's off and deletes it with its deliveries; not all at once: whether it is gone."""
    await own(connection, subscription, subscription_id)
    await connection.execute(update(subscription).where(_s.id == subscription_id).values(enabled=False))
    oldest = select(_d.id).where(_d.subscription_id == subscription_id).limit(_AT_ONCE)
    if await delete_found(connection, delivery, oldest) == _AT_ONCE:
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


async def find(connection: AsyncConnection, table: Table, row_id: int) -> AnyRow | None:
    """A row of any organization: for the worker."""
    return (await connection.execute(select(table).where(table.c.id == row_id))).first()


async def list_deliveries(
    connection: AsyncConnection, organization_id: int, subscription_id: int, status: str, page: Page
) -> tuple[Sequence[AnyRow], str]:
    """A page of deliveries, newest first, and the token of the next."""
    query = select(delivery).where(_d.organization_id == organization_id)
    for column, wanted in ((_d.subscription_id, subscription_id), (_d.status, status)):
        if wanted:
            query = query.where(column == wanted)
    return await listed(connection, query, _d.id, page, newest_first=True)


async def change_delivery(connection: AsyncConnection, delivery_id: int, **values: Any) -> AnyRow:
    """Sets columns of one of the caller's deliveries."""
    found = await own(connection, delivery, delivery_id)
    await connection.execute(update(delivery).where(_d.id == found.id).values(**values))
    return await own(connection, delivery, delivery_id)


async def begin_again(connection: AsyncConnection, delivery_id: int) -> AnyRow:
    """One of the caller's deliveries is to be sent, whatever became of it."""
    found = await own(connection, delivery, delivery_id)
    repeats = 0 if found.status == Status.SUPPRESSED else found.repeats  # it stood for others, and now for itself
    fresh = {"status": Status.QUEUED, "attempts": 0, "answer": "", "due_at_ms": None}
    return await change_delivery(connection, delivery_id, repeats=repeats, **fresh)


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
