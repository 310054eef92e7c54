"""Assertions of device states, carried out: compared and set in event time, changes announced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from aemos_core import telemetry
from aemos_core.announcements import outbox_row
from aemos_core.database import Database
from aemos_core.outbox import Row
from aemos_core.redis_link import RedisClient
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_rules import state_store
from aemos_rules.announcements import state_change
from aemos_rules.domain import StateAssertion, StateChange, StateRow, Watermark, fold
from aemos_rules.effects import Cause, Pending, RunIds
from aemos_rules.state_store import Instance
from aemos_rules.watermarks import Watermarks

Folded: TypeAlias = list[tuple[StateRow, list[StateChange]]]

_ASSERTED = "device-state:asserted"
"""Redis hash (rules): by state id, as Watermarks has it."""


class StateApplier:
    """Applies assertions: one query, and a transaction only when a state changes."""

    effect = StateAssertion

    def __init__(self, database: Database, redis: RedisClient) -> None:
        self._database = database
        self._marks = Watermarks(redis, _ASSERTED)

    async def prepare(self, effects: Sequence[StateAssertion]) -> _Changes:
        """Reads the states and what they were asserted to be."""
        by_state: dict[int, list[StateAssertion]] = {}
        for assertion in effects:
            by_state.setdefault(assertion.device_state_id, []).append(assertion)
        async with self._database.read() as connection:
            states = await state_store.current(connection, by_state)
        asserted = await self._marks.of([state.device_state_id for state in states])
        return _Changes(self._marks, by_state, asserted, _fold(states, asserted, by_state))


class _Changes(Pending):
    """What one job's assertions make of their states."""

    def __init__(
        self,
        marks: Watermarks,
        by_state: Mapping[int, Sequence[StateAssertion]],
        asserted: Mapping[int, Watermark],
        folded: Folded,
    ) -> None:
        self._marks = marks
        self._by_state = by_state
        self._asserted = asserted
        self._folded = folded
        self._changing = [row.device_state_id for row, changes in folded if changes]
        self.writes = bool(self._changing)

    async def look(self, connection: AsyncConnection) -> None:
        """Locks the states that seem to change."""
        self._states = {state.id: state for state in await state_store.load(connection, self._changing, lock=True)}
        folded = _fold(map(state_store.state_row, self._states.values()), self._asserted, self._by_state)
        self._rows = [row for row, found in folded if found]
        self._found = [change for _, found in folded for change in found]
        self.causes = {_cause(change.assertion) for change in self._found}

    async def write(self, connection: AsyncConnection, runs: RunIds) -> Sequence[Row]:
        """Stores new values and instances; announces each change."""
        states, changes = self._states, self._found
        if not changes:
            return []
        await state_store.change(connection, self._rows, [_instance(change, runs) for change in changes])
        told = [
            state_change(states[c.device_state_id], c.old_value, c.new_value, _trace_of(c.assertion)) for c in changes
        ]
        return [outbox_row(told)]

    async def settle(self) -> None:
        """Notes how far each state was asserted, whether it changed or not."""
        await self._marks.advance(self._asserted, {row.device_state_id: row.watermark for row, _ in self._folded})


def _fold(
    states: Iterable[StateRow],
    asserted: Mapping[int, Watermark],
    by_state: Mapping[int, Sequence[StateAssertion]],
) -> Folded:
    folded = []
    for state_id, value, mark in states:
        row = StateRow(state_id, value, max(mark, asserted.get(state_id, mark)))
        folded.append(fold(row, by_state[state_id]))
    return folded


def _cause(assertion: StateAssertion) -> Cause:
    at, reading_id, chain_id = assertion.watermark
    return chain_id, reading_id, at


def _instance(change: StateChange, runs: RunIds) -> Instance:
    chain_id, reading_id, at = cause = _cause(change.assertion)
    run_id = runs.get(cause, 0)
    return Instance(change.device_state_id, change.old_value, change.new_value, at, chain_id, reading_id, run_id)


def _trace_of(assertion: StateAssertion) -> bytes:
    return assertion.reading.trace_context if assertion.reading is not None else telemetry.current()
