"""Alarms and their events in the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aemos_core import audit
from aemos_core.identity import caller
from aemos_core.records import AnyRow
from aemos_core.times import now_ms
from sqlalchemy import insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_rules import tables as t
from aemos_rules.alarms import AlarmAssertion, AlarmKey, What, happened

_a = t.alarm.c


async def latest(connection: AsyncConnection, keys: Iterable[AlarmKey]) -> dict[AlarmKey, AnyRow]:
    """The newest alarm of each device and type that ever had one, locked until the transaction ends."""
    query = select(t.alarm).where(_a.latest == 1, tuple_(_a.device_id, _a.type).in_(sorted(keys))).order_by(_a.id)
    rows = (await connection.execute(query.with_for_update())).all()
    return {(row.device_id, row.type): row for row in rows}


async def change(connection: AsyncConnection, row_id: int, old: str, assertion: AlarmAssertion) -> tuple[What, AnyRow]:
    """Stores that an alarm (id 0: its first) has another severity than the old one; what it was, and the row after."""
    what, values = happened(old, assertion.value), dict[str, Any]()
    if what is What.RAISED:
        row_id = await _raise(connection, row_id, assertion)
    else:
        changed = _cleared(assertion.moment) if what is What.CLEARED else {"severity": assertion.value}
        values = changed | t.asserted(assertion.watermark)
    cause = {"rule_chain_id": assertion.chain_id, "data_stream_id": assertion.reading.id}
    event = {"type": what, "severity": assertion.value or old, "at_ms": assertion.moment, **cause}
    return what, await _happens(connection, row_id, values, event)


async def _raise(connection: AsyncConnection, before: int, assertion: AlarmAssertion) -> int:
    if before:
        await connection.execute(update(t.alarm).where(_a.id == before).values(latest=None))
    reading = assertion.reading
    values = {
        "organization_id": reading.organization_id,
        "device_id": reading.device_id,
        "device_uuid": reading.device_uuid,
        "type": assertion.type,
        "latest": 1,
        "severity": assertion.value,
        "active": True,
        "message": assertion.message,
        "raised_at_ms": assertion.moment,
        "rule_chain_id": assertion.chain_id,
        "data_stream_id": reading.id,
        **t.asserted(assertion.watermark),
    }
    return int((await connection.execute(insert(t.alarm).values(values))).inserted_primary_key[0])  # type: ignore[index]


def _cleared(at_ms: int) -> dict[str, Any]:
    return {"active": False, "cleared_at_ms": at_ms}


async def change_by_hand(connection: AsyncConnection, row: AnyRow, what: What) -> AnyRow | None:
    """Stores that a user ACKNOWLEDGED or CLEARED it; the row afterwards, or None when it is so already."""
    now, values = now_ms(), {}
    if what is What.ACKNOWLEDGED and row.acknowledged_at_ms is None:
        values = {"acknowledged_at_ms": now}
    elif what is What.CLEARED and row.active:
        values = _cleared(now) | t.asserted((max(now, row.asserted_at_ms + 1), 0, 0))
    if not values:
        return None
    await audit.record(connection, t.audit, f"alarm.{what}", f"alarm {row.id}")
    event = {"type": what, "severity": row.severity, "at_ms": now, "user_id": caller().user_id}
    return await _happens(connection, row.id, values, event)


async def _happens(
    connection: AsyncConnection, alarm_id: int, values: Mapping[str, Any], event: Mapping[str, Any]
) -> AnyRow:
    """Stores what an alarm became, unless it was just made so, and the event of it; the row afterwards."""
    if values:
        await connection.execute(update(t.alarm).where(_a.id == alarm_id).values(values))
    await connection.execute(insert(t.alarm_event).values(alarm_id=alarm_id, **event))
    return (await connection.execute(select(t.alarm).where(_a.id == alarm_id))).one()
