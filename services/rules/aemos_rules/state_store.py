"""Device states and their instances in the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aemos_core import audit
from sqlalchemy import bindparam, delete, insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_rules import tables as t
from aemos_rules.domain import NEVER, StateRow

_s = t.device_state.c


class Instance(NamedTuple):
    """One change of a state, and its cause: a chain, perhaps a reading, and the run if it is recorded; or a user."""

    device_state_id: int
    old_value: str
    value: str
    at_ms: int
    rule_chain_id: int = 0
    data_stream_id: int = 0
    chain_run_id: int = 0
    user_id: int = 0


async def create(connection: AsyncConnection, values: Mapping[str, Any]) -> int:
    """A new state at its default value."""
    created = await connection.execute(
        insert(t.device_state).values(**values, value=values["default_value"], **t.asserted(NEVER))
    )
    state_id = int(created.inserted_primary_key[0])  # type: ignore[index]
    await audit.record(connection, t.audit, "device_state.create", f"device state {state_id}")
    return state_id


async def remove(connection: AsyncConnection, state_id: int) -> None:
    """Deletes a state and its instances."""
    await connection.execute(delete(t.device_state).where(_s.id == state_id))
    await audit.record(connection, t.audit, "device_state.delete", f"device state {state_id}")


async def change(connection: AsyncConnection, rows: Sequence[StateRow], changes: Sequence[Instance]) -> None:
    """Stores what states became, and the instances that took them there."""
    changed_at = {instance.device_state_id: instance.at_ms for instance in changes}
    become = [
        {
            "state": row.device_state_id,
            "value": row.value,
            "changed_at_ms": changed_at[row.device_state_id],
            **t.asserted(row.watermark),
        }
        for row in rows
    ]
    await connection.execute(update(t.device_state).where(_s.id == bindparam("state")), become)
    await connection.execute(insert(t.device_state_instance), [instance._asdict() for instance in changes])
