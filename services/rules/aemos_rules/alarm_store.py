"""Alarms and their events in the database."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from aemos_core import audit
from aemos_core.identity import caller
from aemos_core.records import AnyRow
from aemos_core.times import now_ms
from sqlalchemy import bindparam, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_rules import tables as t
from aemos_rules.alarms import AlarmAssertion, AlarmKey, What, happened

_a = t.alarm.c


class Change(NamedTuple):
    """An alarm as it is, None before its first; its severity, CLEARED when it is not active; and what is said of it."""

    row: Any
    old: str
    assertion: AlarmAssertion


async def latest(connection: AsyncConnection, keys: Iterable[AlarmKey]) -> dict[AlarmKey, AnyRow]:
    """The newest alarm of each device and type that ever had one, locked until the transaction ends."""
    query = select(t.alarm).where(_a.latest == 1, tuple_(_a.device_id, _a.type).in_(sorted(keys))).order_by(_a.id)
    rows = (await connection.execute(query.with_for_update())).all()
    return {(row.device_id, row.type): row for row in rows}


async def change(connection: AsyncConnection, changes: Sequence[Change]) -> list[tuple[What, AnyRow]]:
    """Stores that alarms, each another one, have another severity; what happened and the row after, in their order."""
    whats = [happened(each.old, each.assertion.value) for each in changes]
    raised = [each for what, each in zip(whats, changes, strict=True) if what is What.RAISED]
    altered = [each for what, each in zip(whats, changes, strict=True) if what is not What.RAISED]
    if raised:
        before = [each.row.id for each in raised if each.row is not None]
        if before:
            await connection.execute(update(t.alarm).where(_a.id.in_(before)).values(latest=None))
        await connection.execute(insert(t.alarm), [_raised(each.assertion) for each in raised])
    if altered:
        one = update(t.alarm).where(_a.id == bindparam("alarm"))
        await connection.execute(one, [_altered(each) for each in altered])
    rows = await latest(connection, (each.assertion.key for each in changes))
    done = [(what, rows[each.assertion.key]) for what, each in zip(whats, changes, strict=True)]
    events = [_event(each, what, row.id) for each, (what, row) in zip(changes, done, strict=True)]
    await connection.execute(insert(t.alarm_event), events)
    return done


def _raised(assertion: AlarmAssertion) -> dict[str, Any]:
    reading = assertion.reading
    return {
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


def _altered(change: Change) -> dict[str, Any]:
    row, old, assertion = change
    become = {"active": True, "cleared_at_ms": None} if assertion.value else _cleared(assertion.moment)
    return {"alarm": row.id, "severity": assertion.value or old, **become, **t.asserted(assertion.watermark)}


def _event(change: Change, what: What, alarm_id: int) -> dict[str, Any]:
    _, old, assertion = change
    cause = {"rule_chain_id": assertion.chain_id, "data_stream_id": assertion.reading.id}
    severity = assertion.value or old
    return {"alarm_id": alarm_id, "type": what, "severity": severity, "at_ms": assertion.moment, **cause}


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
    event = {"alarm_id": row.id, "type": what, "severity": row.severity, "at_ms": now, "user_id": caller().user_id}
    await connection.execute(update(t.alarm).where(_a.id == row.id).values(values))
    await connection.execute(insert(t.alarm_event).values(event))
    return (await connection.execute(select(t.alarm).where(_a.id == row.id))).one()
