"""Alarms and their events in the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aemos_core import audit
from aemos_core.identity import caller
from aemos_core.records import AnyRow
from aemos_core.times import now_ms
from sqlalchemy import insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_rules import tables as t
from aemos_rules.alarms import AlarmAssertion, AlarmKey, What, happened
from aemos_rules.domain import Watermark

_a = t.alarm.c


async def latest(connection: AsyncConnection, keys: Iterable[AlarmKey], lock: bool = False) -> dict[AlarmKey, AnyRow]:
    """The newest alarm of each device and type that ever had one. Locked until the transaction ends when asked."""
    query = select(t.alarm).where(_a.latest == 1, tuple_(_a.device_id, _a.type).in_(sorted(keys))).order_by(_a.id)
    rows = (await connection.execute(query.with_for_update() if lock else query)).all()
    return {(row.device_id, row.type): row for row in rows}


async def change(
    connection: AsyncConnection, row_id: int, changes: Sequence[tuple[str, AlarmAssertion]]
) -> list[tuple[What, AnyRow]]:
    """Stores changes (old severity, assertion) of one alarm (id 0: its first), in order; what each was, and the row
    after it."""
    after = []
    for old, assertion in changes:
        what = happened(old, assertion.value)
        if what is What.RAISED:
            row_id = await _raise(connection, row_id, assertion)
        else:
            changed = _cleared(assertion.moment) if what is What.CLEARED else {"severity": assertion.value}
            values = changed | _asserted(assertion.watermark)
            await connection.execute(update(t.alarm).where(_a.id == row_id).values(values))
        cause = {"rule_chain_id": assertion.chain_id, "data_stream_id": assertion.reading.id}
        await _add_event(connection, row_id, what, assertion.value or old, assertion.moment, **cause)
        after.append((what, (await connection.execute(select(t.alarm).where(_a.id == row_id))).one()))
    return after


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
        **_asserted(assertion.watermark),
    }
    return int((await connection.execute(insert(t.alarm).values(values))).inserted_primary_key[0])  # type: ignore[index]


def _cleared(at_ms: int) -> dict[str, Any]:
    return {"active": False, "cleared_at_ms": at_ms}


def _asserted(mark: Watermark) -> dict[str, int]:
    return {"asserted_at_ms": mark[0], "asserted_reading_id": mark[1], "asserted_chain_id": mark[2]}


def done_by_hand(row: AnyRow, what: What, now: int) -> dict[str, Any]:
    """What a user's ACKNOWLEDGED or CLEARED at `now` (ms) changes in a row; empty when it is so already."""
    if what is What.ACKNOWLEDGED:
        return {"acknowledged_at_ms": now} if row.acknowledged_at_ms is None else {}
    mark = (max(now, row.asserted_at_ms + 1), 0, 0)
    return _cleared(now) | _asserted(mark) if row.active else {}


async def change_by_hand(connection: AsyncConnection, row: AnyRow, what: What, values: Mapping[str, Any]) -> AnyRow:
    """Stores what a user did; the row afterwards."""
    await connection.execute(update(t.alarm).where(_a.id == row.id).values(**values))
    await _add_event(connection, row.id, what, row.severity, now_ms(), user_id=caller().user_id)
    await audit.record(connection, t.audit, f"alarm.{what}", f"alarm {row.id}")
    return (await connection.execute(select(t.alarm).where(_a.id == row.id))).one()


async def _add_event(
    connection: AsyncConnection,
    alarm_id: int,
    what: What,
    severity: str,
    at_ms: int,
    *,
    rule_chain_id: int = 0,
    data_stream_id: int = 0,
    user_id: int = 0,
) -> None:
    cause = {"rule_chain_id": rule_chain_id, "data_stream_id": data_stream_id, "user_id": user_id}
    await connection.execute(
        insert(t.alarm_event).values(alarm_id=alarm_id, type=what, severity=severity, at_ms=at_ms, **cause)
    )
