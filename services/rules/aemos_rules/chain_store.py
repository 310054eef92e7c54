"""Rule chains in the database."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, replace
from types import SimpleNamespace
from typing import Any

from aemos_core import audit
from aemos_core.errors import not_found
from aemos_core.identity import caller
from aemos_core.records import AnyRow, own
from aemos_core.times import now_ms
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_rules import tables as t
from aemos_rules.domain import Connection, Node, RuleChain

_c = t.rule_chain.c
_CHANGES_OVERLAP_MS = 10_000
"""Longer than a transaction may take: its change was stamped before its commit."""
_CHANGES_KEPT_MS = 60 * 60 * 1000
_MOST_CHANGES = 5_000
_SCHEDULE = ("id", "organization_id", "cron_expression", "timezone", "interval_seconds", "interval_anchor_ms",
             "run_at_ms", "misfire_policy", "overlap_policy", "schedule_paused", "schedule_since_ms")  # fmt: skip
SCHEDULES = select(*(_c[name] for name in _SCHEDULE)).where(_c.schedule_enabled, _c.enabled)
"""The enabled schedules of all organizations."""
_PLAIN = [field.name for field in fields(RuleChain) if field.name not in ("nodes", "connections")]


def chain_of(row: Any) -> RuleChain:
    """A row as the judge knows it."""
    nodes, connections = json.loads(row.nodes), json.loads(row.connections or "[]")
    return RuleChain(
        nodes=tuple(Node(**node) for node in nodes),
        connections=tuple(Connection(**one) for one in connections),
        **{name: getattr(row, name) for name in _PLAIN},
    )


async def get_version(connection: AsyncConnection, chain_id: int, version: int) -> Any:
    """The caller's chain with the name, nodes and connections that it had in a version; 0: the newest."""
    row = await own(connection, t.rule_chain, chain_id)
    if version in (0, row.version):
        return row
    of = t.rule_chain_version.c
    query = select(of.version, of.name, of.nodes, of.connections)
    older = (await connection.execute(query.where(of.rule_chain_id == chain_id, of.version == version))).first()
    if older is None:
        raise not_found("version of the rule chain")
    return SimpleNamespace(**{**row._mapping, **older._mapping})


async def schedule_changes(
    connection: AsyncConnection, since_ms: int, now: int
) -> tuple[Sequence[AnyRow], list[int]] | None:
    """Enabled schedules of the chains that changed, and ids of those that have none; None: list everything instead."""
    if since_ms < now - _CHANGES_KEPT_MS // 2 or since_ms > now + _CHANGES_OVERLAP_MS:
        return None
    change = t.rule_chain_change.c
    recent = select(change.rule_chain_id).where(change.at_ms >= since_ms - _CHANGES_OVERLAP_MS).distinct()
    changed = set((await connection.execute(recent.limit(_MOST_CHANGES))).scalars())
    if len(changed) == _MOST_CHANGES:
        return None
    rows = (await connection.execute(SCHEDULES.where(_c.id.in_(sorted(changed))))).all() if changed else []
    return rows, sorted(changed - {row.id for row in rows})


async def suspend(connection: AsyncConnection, chain_id: int, version: int, error: str) -> bool:
    """Takes a chain out until it is saved again; whether this version was in force."""
    of_version = (_c.id == chain_id, _c.version == version, _c.suspended_at_ms == 0)
    values = {"suspended_at_ms": now_ms(), "suspension": error}
    suspended = await connection.execute(update(t.rule_chain).where(*of_version).values(**values))
    if suspended.rowcount:
        await _changed(connection, chain_id, "suspend")
    return bool(suspended.rowcount)


async def pause(connection: AsyncConnection, chain_id: int, paused: bool) -> None:
    """Pauses or resumes a schedule; what is so already stays as it is."""
    values = {"schedule_paused": paused, "schedule_since_ms": now_ms()}
    changed = update(t.rule_chain).where(_c.id == chain_id, _c.schedule_paused != paused).values(**values)
    if (await connection.execute(changed)).rowcount:
        await _changed(connection, chain_id, "pause" if paused else "resume")


async def save(connection: AsyncConnection, chain: RuleChain, sensor_uuids: Iterable[str]) -> int:
    """Inserts a chain (id 0) or replaces it, and keeps the version; returns its id."""
    values = asdict(chain)
    del values["id"]
    for part in ("nodes", "connections"):
        values[part] = json.dumps(values[part])
    values |= {"suspended_at_ms": 0, "suspension": ""}
    if chain.id:
        chain_id = chain.id
        await connection.execute(update(t.rule_chain).where(_c.id == chain_id).values(**values))
        await connection.execute(delete(t.rule_chain_sensor).where(t.rule_chain_sensor.c.rule_chain_id == chain_id))
        await _forget(connection, chain_id, [node.name for node in chain.nodes])
    else:
        created = await connection.execute(insert(t.rule_chain).values(**values, created_at_ms=now_ms()))
        chain_id = int(created.inserted_primary_key[0])  # type: ignore[index]
    kept = {name: values[name] for name in ("version", "name", "nodes", "connections")}
    kept |= {"rule_chain_id": chain_id, "saved_at_ms": now_ms(), "user_id": caller().user_id}
    await connection.execute(insert(t.rule_chain_version).values(**kept))
    links = [{"sensor_uuid": uuid, "rule_chain_id": chain_id} for uuid in sorted(sensor_uuids)]
    if links:
        await connection.execute(insert(t.rule_chain_sensor), links)
    await _changed(connection, chain_id, "update" if chain.id else "create")
    return chain_id


async def remove(connection: AsyncConnection, chain_id: int) -> None:
    """Deletes a chain."""
    await connection.execute(delete(t.rule_chain).where(_c.id == chain_id))
    await _forget(connection, chain_id, ())
    await _changed(connection, chain_id, "delete")


async def _forget(connection: AsyncConnection, chain_id: int, nodes: Iterable[str]) -> None:
    """Drops what the chain's nodes remember and wait for, but for these nodes."""
    for table in (t.node_memory, t.deadline):
        own = table.c.rule_chain_id == chain_id
        await connection.execute(delete(table).where(own, table.c.node.not_in([*nodes, ""])))


async def _changed(connection: AsyncConnection, chain_id: int, verb: str) -> None:
    now, change = now_ms(), t.rule_chain_change
    await connection.execute(insert(change).values(rule_chain_id=chain_id, at_ms=now))
    await connection.execute(delete(change).where(change.c.at_ms < now - _CHANGES_KEPT_MS))
    await audit.record(connection, t.audit, f"rule_chain.{verb}", f"rule chain {chain_id}")


async def sensors_of(connection: AsyncConnection, chain_id: int) -> list[str]:
    """The sensors that a chain's filters name."""
    link = t.rule_chain_sensor.c
    found = await connection.execute(select(link.sensor_uuid).where(link.rule_chain_id == chain_id))
    return list(found.scalars())


async def chains_of(connection: AsyncConnection, sensor_uuids: Iterable[str]) -> dict[str, list[int]]:
    """For each sensor the ids of the enabled chains that judge it, in order; sensors without any are left out."""
    link = t.rule_chain_sensor.c
    query = (
        select(link.sensor_uuid, link.rule_chain_id)
        .join(t.rule_chain)
        .where(link.sensor_uuid.in_(list(sensor_uuids)), _c.enabled, _c.suspended_at_ms == 0)
        .order_by(link.rule_chain_id)
    )
    found: dict[str, list[int]] = {}
    for sensor_uuid, chain_id in (await connection.execute(query)).all():
        found.setdefault(sensor_uuid, []).append(chain_id)
    return found


async def load(connection: AsyncConnection, chain_ids: Iterable[int]) -> list[RuleChain]:
    """Chains by id, of any organization: for the judge, to whom one that is suspended is not enabled."""
    query = select(t.rule_chain).where(_c.id.in_(list(chain_ids)))
    rows = (await connection.execute(query)).all()
    return [replace(chain_of(row), enabled=row.enabled and not row.suspended_at_ms) for row in rows]
