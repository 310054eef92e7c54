"""Readings in the database: one transaction for a batch, and pages of one variable."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from aemos_core.database import Database
from aemos_core.outbox import OutboxRows, Row
from aemos_core.times import now_ms
from sqlalchemy import ColumnElement, and_, delete, insert, or_, select, tuple_, update

from aemos_ingest import tables as t

_BLOCK = 100_000
_IDS = "data_stream"
_INSERT_AT_ONCE = 1_000
_ASK_AT_ONCE = 500
_SPANS_AT_ONCE = 100
_d = t.data_stream.c


class ReadingIds:
    """Ids for readings, known before the insert; blocks are reserved in the database, so no two processes share one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._next = self._end = 0

    async def take(self, count: int) -> int:
        """The first of `count` consecutive ids."""
        if self._next + count > self._end:
            self._next = await self._reserve(max(count, _BLOCK))
            self._end = self._next + max(count, _BLOCK)
        first = self._next
        self._next += count
        return first

    async def _reserve(self, count: int) -> int:
        block = t.id_block
        async with self._database.write() as connection:
            claim = update(block).where(block.c.name == _IDS).values(next_id=block.c.next_id + count)
            if (await connection.execute(claim)).rowcount == 0:
                await connection.execute(insert(block).values(name=_IDS, next_id=1 + count))
                return 1
            found = await connection.execute(select(block.c.next_id).where(block.c.name == _IDS))
            return int(found.scalar_one()) - count


_COLUMNS = ("telemetry_data_id", "received_at_ms", "id", "value", "number", "origin_key")
Values = tuple[int, int, int, str, float | None, int | None]
"""A row, in the order of these columns."""


class Message(NamedTuple):
    """What a messageId stands for."""

    digest: bytes
    reading_id: int
    received_at_ms: int


Messages = Mapping[tuple[int, str], Message]
"""By device id and messageId."""


async def store(
    database: Database,
    outbox: OutboxRows,
    readings: Sequence[Values],
    names: Mapping[tuple[int, str], Message],
    announcements: Sequence[Row],
) -> list[Row]:
    """Writes readings, what devices call them, and what announces them in one transaction; durable when it returns.

    Raises EXISTS when another process stores a reading of the same name meanwhile.
    """
    async with database.write() as connection:
        if names:
            at = now_ms()
            values = [
                {"device_id": d, "message_id": m, **message._asdict(), "at_ms": at} for (d, m), message in names.items()
            ]
            await connection.execute(insert(t.reading_message), values)
        for start in range(0, len(readings), _INSERT_AT_ONCE):
            rows = readings[start : start + _INSERT_AT_ONCE]
            await connection.exec_driver_sql(*_insertion(rows, "?" if database.is_sqlite else "%s"))
        return await outbox.add(connection, announcements)


def _insertion(rows: Sequence[Values], parameter: str) -> tuple[str, list[tuple[Any, ...]]]:
    """The driver's own statement: SQLAlchemy would make a dictionary of each row, a tenth of what a reading costs here.

    Columns that are NULL in every row stay out, since MariaDB takes a bulk of rows only with a type for each column.
    """
    used = [at for at, column in enumerate(zip(*rows, strict=True)) if any(value is not None for value in column)]
    names = ", ".join(_COLUMNS[at] for at in used)
    statement = f"INSERT INTO {t.data_stream.name} ({names}) VALUES ({', '.join([parameter] * len(used))})"
    return statement, list(rows if len(used) == len(_COLUMNS) else map(itemgetter(*used), rows))


async def messages(database: Database, names: Iterable[tuple[int, str]]) -> dict[tuple[int, str], Message]:
    """Those of these names that are taken."""
    c = t.reading_message.c
    found: dict[tuple[int, str], Message] = {}
    ordered = sorted(names)
    async with database.read() as connection:
        for start in range(0, len(ordered), _ASK_AT_ONCE):
            asked = ordered[start : start + _ASK_AT_ONCE]
            query = select(t.reading_message).where(tuple_(c.device_id, c.message_id).in_(asked))
            for row in (await connection.execute(query)).all():
                message = Message(bytes(row.digest), row.reading_id, row.received_at_ms)
                found[row.device_id, row.message_id] = message
    return found


class Span(NamedTuple):
    """Readings of a variable that arrived, or were measured, from a time to another one, both inclusive."""

    variable_id: int
    from_ms: int
    to_ms: int


async def origins(database: Database, sought: Mapping[Span, Collection[int]]) -> dict[tuple[int, int], tuple[int, int]]:
    """(reading id, received_at_ms) by variable and origin key, of the readings with these keys in these spans."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    spans = list(sought)
    async with database.read() as connection:
        for start in range(0, len(spans), _SPANS_AT_ONCE):
            wanted = [_in_span(span, sought[span]) for span in spans[start : start + _SPANS_AT_ONCE]]
            query = select(_d.telemetry_data_id, _d.origin_key, _d.id, _d.received_at_ms).where(or_(*wanted))
            for row in await connection.execute(query.order_by(_d.id)):
                found[row.telemetry_data_id, row.origin_key] = (row.id, row.received_at_ms)
    return found


def _in_span(span: Span, keys: Collection[int]) -> ColumnElement[bool]:
    """A range of the primary key."""
    return and_(
        _d.telemetry_data_id == span.variable_id,
        _d.received_at_ms.between(span.from_ms, span.to_ms),
        _d.origin_key.in_(keys),
    )


async def forget_messages(database: Database, before_ms: int) -> int:
    """Deletes some of the names from before; how many there were."""
    c = t.reading_message.c
    query = select(c.device_id, c.message_id).where(c.at_ms < before_ms).limit(_INSERT_AT_ONCE)
    async with database.write() as connection:
        old = [tuple(row) for row in (await connection.execute(query)).all()]
        if old:
            await connection.execute(delete(t.reading_message).where(tuple_(c.device_id, c.message_id).in_(old)))
    return len(old)
