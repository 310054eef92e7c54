"""Assertions of device states and alarms, carried out: compared and set in event time, each change announced.

The database has the watermark of the last change. Equal values, which are nearly all, advance only one in Redis, so
they cost no write to the database; when Redis loses it, a late reading may count until the next one comes. States and
alarms are read once, locked, since on the way to a change each statement is half a millisecond.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

from aemos.v1 import job_pb2
from aemos_core import telemetry
from aemos_core.announcements import outbox_row
from aemos_core.outbox import Row
from aemos_core.redis_link import RedisClient
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_rules import alarm_store, state_store
from aemos_rules import tables as t
from aemos_rules.alarms import CLEARED, AlarmKey
from aemos_rules.announcements import alarm_changed, state_change
from aemos_rules.domain import NEVER, Cause, RunIds, StateAssertion, StateRow, Watermark, fold
from aemos_rules.effects import Pending
from aemos_rules.locking import locked
from aemos_rules.state_store import Instance

Key: TypeAlias = Any
"""Of what is asserted: a state's id, or an AlarmKey."""


class Known(NamedTuple):
    """What assertions find, and its row when there is one."""

    value: str
    watermark: Watermark
    row: Any = None


class Folded(NamedTuple):
    """What assertions make of it: `changes` are (old value, assertion), in order."""

    key: Key
    row: Any
    value: str
    watermark: Watermark
    changes: list[tuple[str, Any]]


class Assertions(Pending, ABC):
    """Assertions of one kind that one job makes: one query, and writes only when a value changes."""

    marks: ClassVar[str]
    """Redis hash (rules): by key the greatest watermark that an equal value left, "ms:reading:chain"."""

    def __init__(self, redis: RedisClient, effects: Sequence[Any]) -> None:
        self._redis = redis
        self._by_key: dict[Key, list[Any]] = {}
        for assertion in effects:
            self._by_key.setdefault(assertion.key, []).append(assertion)

    @abstractmethod
    async def known(self, connection: AsyncConnection, keys: Iterable[Key]) -> Mapping[Key, Known]:
        """What there is, or begins with the first assertion. Locked until the transaction ends."""

    @abstractmethod
    async def change(
        self, connection: AsyncConnection, found: Sequence[Folded], runs: RunIds
    ) -> list[job_pb2.Announcement]:
        """Stores what changes; returns what is to be told of it."""

    async def prepare(self) -> None:
        """Reads how far each was asserted."""
        marks = await self._redis.hmget(self.marks, list(map(_field, self._by_key)))
        self._reached = {key: _watermark(mark) for key, mark in zip(self._by_key, marks, strict=True) if mark}

    async def look(self, connection: AsyncConnection) -> None:
        """Finds what changes."""
        known, reached = await self.known(connection, self._by_key), self._reached
        folded = [
            Folded(key, row, *fold(value, max(mark, reached.get(key, mark)), self._by_key[key]))
            for key, (value, mark, row) in known.items()
        ]
        self._moved = {each.key: each.watermark for each in folded if each.watermark != reached.get(each.key)}
        self._found = [each for each in folded if each.changes]
        self.writes = bool(self._found)
        self.causes = {_cause(assertion) for each in self._found for _, assertion in each.changes}

    async def write(self, connection: AsyncConnection, runs: RunIds) -> Sequence[Row]:
        """Stores and announces each change."""
        return [outbox_row(await self.change(connection, self._found, runs))]

    async def settle(self) -> None:
        """Notes how far each was asserted, whether it changed or not."""
        if self._moved:
            moved = self._moved.items()
            await self._redis.hset(self.marks, mapping={_field(key): b"%d:%d:%d" % mark for key, mark in moved})


class States(Assertions):
    """Device states; those that are gone are left alone."""

    marks = "device-state:asserted"

    async def known(self, connection: AsyncConnection, keys: Iterable[int]) -> Mapping[int, Known]:
        rows = await locked(connection, t.device_state, keys)
        return {row.id: Known(row.value, t.watermark_of(row), row) for row in rows}

    async def change(
        self, connection: AsyncConnection, found: Sequence[Folded], runs: RunIds
    ) -> list[job_pb2.Announcement]:
        changes = [(each.row, old, assertion) for each in found for old, assertion in each.changes]
        rows = [StateRow(each.key, each.value, each.watermark) for each in found]
        await state_store.change(connection, rows, [_instance(old, one, runs) for _, old, one in changes])
        return [state_change(row, old, one.value, _trace_of(one)) for row, old, one in changes]


class Alarms(Assertions):
    """Alarms; the first assertion of one makes it."""

    marks = "alarm:asserted"

    async def known(self, connection: AsyncConnection, keys: Iterable[AlarmKey]) -> Mapping[AlarmKey, Known]:
        rows = await alarm_store.latest(connection, keys)
        return {key: _known_alarm(rows.get(key)) for key in keys}

    async def change(
        self, connection: AsyncConnection, found: Sequence[Folded], runs: RunIds
    ) -> list[job_pb2.Announcement]:
        told, rows = [], {each.key: each.row for each in found}
        # The first change of each alarm, then the second: a thousand alarms take a few statements.
        for step in range(max(len(each.changes) for each in found)):
            changes = [
                alarm_store.Change(rows[each.key], *each.changes[step]) for each in found if step < len(each.changes)
            ]
            for (_, _, assertion), (what, row) in zip(
                changes, await alarm_store.change(connection, changes), strict=True
            ):
                rows[assertion.key] = row
                told.append(alarm_changed(row, what, assertion.reading.trace_context))
        return told


def _known_alarm(row: Any) -> Known:
    if row is None:
        return Known(CLEARED, NEVER)
    return Known(row.severity if row.active else CLEARED, t.watermark_of(row), row)


def _instance(old_value: str, assertion: StateAssertion, runs: RunIds) -> Instance:
    chain_id, reading_id, at = cause = _cause(assertion)
    state_id, run_id = assertion.device_state_id, runs.get(cause, 0)
    return Instance(state_id, old_value, assertion.value, at, chain_id, reading_id, run_id)


def _cause(assertion: Any) -> Cause:
    at, reading_id, chain_id = assertion.watermark
    return chain_id, reading_id, at


def _trace_of(assertion: StateAssertion) -> bytes:
    return assertion.reading.trace_context if assertion.reading is not None else telemetry.current()


def _field(key: Key) -> str:
    return str(key) if isinstance(key, int) else f"{key[0]}:{key[1]}"


def _watermark(text: bytes | str) -> Watermark:
    at, reading, chain = (text.decode() if isinstance(text, bytes) else text).split(":")
    return int(at), int(reading), int(chain)
