"""Assertions of alarms, carried out: raised, changed and cleared in event time, each change announced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from aemos_core.announcements import outbox_row
from aemos_core.database import Database
from aemos_core.outbox import Row
from aemos_core.redis_link import RedisClient
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_rules import alarm_store
from aemos_rules.alarms import AlarmAssertion, AlarmChange, AlarmKey, AlarmRow, fold
from aemos_rules.announcements import alarm_changed
from aemos_rules.domain import Watermark
from aemos_rules.effects import Pending, RunIds
from aemos_rules.watermarks import Watermarks

ByAlarm = Mapping[AlarmKey, Sequence[AlarmAssertion]]
_ASSERTED = "alarm:asserted"
"""Redis hash (rules): as `device-state:asserted`, by "device id:type"."""


class AlarmApplier:
    """Applies assertions: one query, and a transaction only when an alarm changes."""

    effect = AlarmAssertion

    def __init__(self, database: Database, redis: RedisClient) -> None:
        self._database = database
        self._marks = Watermarks(redis, _ASSERTED)

    async def prepare(self, effects: Sequence[AlarmAssertion]) -> _Changes:
        """Reads the alarms and how far they were asserted."""
        by_alarm: dict[AlarmKey, list[AlarmAssertion]] = {}
        for assertion in effects:
            by_alarm.setdefault(assertion.key, []).append(assertion)
        async with self._database.read() as connection:
            rows = await alarm_store.latest(connection, by_alarm)
        marks = await self._marks.of([_field(key) for key in by_alarm])
        return _Changes(self._marks, by_alarm, marks, rows)


class _Changes(Pending):
    """What one job's assertions make of their alarms."""

    def __init__(
        self,
        marks: Watermarks,
        by_alarm: ByAlarm,
        asserted: Mapping[str, Watermark],
        rows: Mapping[AlarmKey, alarm_store.AnyRow],
    ) -> None:
        self._marks = marks
        self._by_alarm = by_alarm
        self._asserted = asserted
        folded = {key: self._fold(key, rows.get(key)) for key in by_alarm}
        self._changing = [key for key, (_, changes) in folded.items() if changes]
        self._reached = {_field(key): mark for key, (mark, _) in folded.items()}
        self.writes = bool(self._changing)

    async def look(self, connection: AsyncConnection) -> None:
        """Locks the alarms that seem to change."""
        rows = await alarm_store.latest(connection, self._changing, lock=True)
        self._found = [(rows.get(key), self._fold(key, rows.get(key))[1]) for key in self._changing]
        marks = (change.assertion.watermark for _, changes in self._found for change in changes)
        self.causes = {(chain_id, reading_id, at) for at, reading_id, chain_id in marks}

    async def write(self, connection: AsyncConnection, runs: RunIds) -> Sequence[Row]:
        """Stores alarms and their events; announces each change."""
        told = []
        for current, changes in self._found:
            after = await alarm_store.change(connection, current.id if current else 0, changes)
            told += [
                alarm_changed(row, change.what, change.assertion.reading.trace_context)
                for row, change in zip(after, changes, strict=True)
            ]
        return [outbox_row(told)] if told else []

    async def settle(self) -> None:
        """Notes how far each alarm was asserted, whether it changed or not."""
        await self._marks.advance(self._asserted, self._reached)

    def _fold(self, key: AlarmKey, row: alarm_store.AnyRow | None) -> tuple[Watermark, list[AlarmChange]]:
        known = alarm_store.alarm_row(row) if row is not None else AlarmRow()
        mark = max(known.watermark, self._asserted.get(_field(key), known.watermark))
        return fold(replace(known, watermark=mark), self._by_alarm[key])


def _field(key: AlarmKey) -> str:
    return f"{key[0]}:{key[1]}"
