"""What runs assert, carried out: states compared and set in event time, changes announced with their transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from aemos_core import telemetry
from aemos_core.database import Database
from aemos_core.outbox import OutboxRows
from aemos_core.redis_link import RedisClient

from aemos_rules import state_store
from aemos_rules.announcements import outbox_row, state_change
from aemos_rules.domain import StateAssertion, StateChange, StateRow, Watermark, fold
from aemos_rules.state_store import AnyRow, Instance

_ASSERTED = "device-state:asserted"
"""Redis hash (rules): by state id the greatest watermark that an equal value left, "ms:reading:chain".

The database has the watermark of the last change. Equal values, which are nearly all, advance only this one, so they
cost no write to the database; when Redis loses it, a late reading may count until the next one comes.
"""


class Effects:
    """Applies the assertions of a job. Doing it again does nothing."""

    def __init__(self, database: Database, outbox: OutboxRows, redis: RedisClient) -> None:
        self._database = database
        self._outbox = outbox
        self._redis = redis

    async def apply(self, assertions: Iterable[StateAssertion]) -> None:
        """One query, and a transaction only when a state changes."""
        by_state: dict[int, list[StateAssertion]] = {}
        for assertion in assertions:
            by_state.setdefault(assertion.device_state_id, []).append(assertion)
        if not by_state:
            return
        async with self._database.read() as connection:
            states = await state_store.load(connection, by_state)
        asserted = await self._asserted([state.id for state in states])
        folded = _fold(states, asserted, by_state)
        changing = [row.device_state_id for row, changes in folded if changes]
        if changing:
            await self._change(changing, asserted, by_state)
        advanced = {row.device_state_id: row.watermark for row, _ in folded}
        moved = {key: mark for key, mark in advanced.items() if mark != asserted.get(key)}
        if moved:
            await self._redis.hset(_ASSERTED, mapping={key: _text(mark) for key, mark in moved.items()})

    async def _change(
        self,
        state_ids: Sequence[int],
        asserted: Mapping[int, Watermark],
        by_state: Mapping[int, Sequence[StateAssertion]],
    ) -> None:
        async with self._database.write() as connection:
            states = {state.id: state for state in await state_store.load(connection, state_ids, lock=True)}
            folded = [(row, changes) for row, changes in _fold(states.values(), asserted, by_state) if changes]
            if not folded:
                return
            changes = [change for _, found in folded for change in found]
            await state_store.change(connection, [row for row, _ in folded], [_instance(c) for c in changes])
            told = [
                state_change(states[c.device_state_id], c.old_value, c.new_value, _trace_of(c.assertion))
                for c in changes
            ]
            rows = await self._outbox.add(connection, [outbox_row(told)])
        self._outbox.committed(rows)

    async def _asserted(self, state_ids: list[int]) -> dict[int, Watermark]:
        found = await self._redis.hmget(_ASSERTED, state_ids) if state_ids else []
        return {state_id: _watermark(mark) for state_id, mark in zip(state_ids, found, strict=True) if mark is not None}


def _fold(
    states: Iterable[AnyRow],
    asserted: Mapping[int, Watermark],
    by_state: Mapping[int, Sequence[StateAssertion]],
) -> list[tuple[StateRow, list[StateChange]]]:
    folded = []
    for state in states:
        row = state_store.state_row(state)
        row = replace(row, watermark=max(row.watermark, asserted.get(state.id, row.watermark)))
        folded.append(fold(row, by_state[state.id]))
    return folded


def _text(watermark: Watermark) -> str:
    at, reading, chain = watermark
    return f"{at}:{reading}:{chain}"


def _watermark(text: bytes | str) -> Watermark:
    at, reading, chain = (text.decode() if isinstance(text, bytes) else text).split(":")
    return int(at), int(reading), int(chain)


def _instance(change: StateChange) -> Instance:
    assertion = change.assertion
    at, reading_id, chain_id = assertion.watermark
    return Instance(change.device_state_id, change.old_value, change.new_value, at, chain_id, reading_id)


def _trace_of(assertion: StateAssertion) -> bytes:
    return assertion.reading.trace_context if assertion.reading is not None else telemetry.current()
