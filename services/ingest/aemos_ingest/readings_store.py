"""Readings in the database: one transaction for a batch, and pages of one variable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from aemos_core.database import Database
from aemos_core.times import now_ms
from sqlalchemy import ColumnElement, and_, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_ingest import tables as t

_BLOCK = 100_000
_IDS = "data_stream"
_INSERT_AT_ONCE = 1_000
_ASK_AT_ONCE = 500
_d = t.data_stream.c
_claim = t.origin_claim.c


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
Origin = tuple[int, int]
"""Variable and origin key."""


async def store(connection: AsyncConnection, readings: Sequence[Values], names: Messages) -> None:
    """Writes readings and what devices call them. Raises EXISTS when another process stores a name meanwhile."""
    if names:
        at = now_ms()
        values = [
            {"device_id": d, "message_id": m, **message._asdict(), "at_ms": at} for (d, m), message in names.items()
        ]
        await connection.execute(insert(t.reading_message), values)
    parameter = "?" if connection.dialect.name == "sqlite" else "%s"
    for start in range(0, len(readings), _INSERT_AT_ONCE):
        await connection.exec_driver_sql(*_insertion(readings[start : start + _INSERT_AT_ONCE], parameter))


def _insertion(rows: Sequence[Values], parameter: str) -> tuple[str, list[tuple[Any, ...]]]:
    """The driver's own statement: SQLAlchemy would make a dictionary of each row, a tenth of what a reading costs here.

    Columns that are NULL in every row stay out, since MariaDB takes a bulk of rows only with a type for each column.
    """
    used = [at for at, column in enumerate(zip(*rows, strict=True)) if any(value is not None for value in column)]
    names = ", ".join(_COLUMNS[at] for at in used)
    statement = f"INSERT INTO {t.data_stream.name} ({names}) VALUES ({', '.join([parameter] * len(used))})"
    return statement, list(rows if len(used) == len(_COLUMNS) else map(itemgetter(*used), rows))


async def messages(connection: AsyncConnection, names: Iterable[tuple[int, str]]) -> dict[tuple[int, str], Message]:
    """Those of these names that are taken."""
    c = t.reading_message.c
    found: dict[tuple[int, str], Message] = {}
    ordered = sorted(names)
    for start in range(0, len(ordered), _ASK_AT_ONCE):
        asked = ordered[start : start + _ASK_AT_ONCE]
        query = select(t.reading_message).where(tuple_(c.device_id, c.message_id).in_(asked))
        for row in (await connection.execute(query)).all():
            message = Message(bytes(row.digest), row.reading_id, row.received_at_ms)
            found[row.device_id, row.message_id] = message
    return found


async def claim(database: Database, origins: Mapping[Origin, int]) -> None:
    """Tells every process that what arrived under these origins before these times is being looked for."""
    values = [{"telemetry_data_id": v, "origin_key": key, "before_ms": at} for (v, key), at in origins.items()]
    async with database.write() as connection:
        await connection.execute(insert(t.origin_claim), values)


async def lock(connection: AsyncConnection, origins: Iterable[Origin]) -> None:
    """Waits until no other process stores a repetition of these, and makes others wait."""
    ordered = sorted(origins)
    by_origin = (_claim.telemetry_data_id, _claim.origin_key)
    for start in range(0, len(ordered), _ASK_AT_ONCE):
        asked = tuple_(*by_origin).in_(ordered[start : start + _ASK_AT_ONCE])
        await connection.execute(select(_claim.id).where(asked).order_by(*by_origin, _claim.id).with_for_update())


async def claims(connection: AsyncConnection, origins: Iterable[Origin], since_ms: int) -> dict[Origin, int]:
    """Those of these origins that are, or were, looked for among what arrived after this time; until when."""
    is_young = _claim.before_ms > since_ms
    if (await connection.execute(select(_claim.id).where(is_young).limit(1))).first() is None:
        return {}
    found: dict[Origin, int] = {}
    ordered = sorted(origins)
    by_origin = (_claim.telemetry_data_id, _claim.origin_key)
    for start in range(0, len(ordered), _ASK_AT_ONCE):
        asked = tuple_(*by_origin).in_(ordered[start : start + _ASK_AT_ONCE])
        query = select(*by_origin, func.max(_claim.before_ms)).where(asked, is_young).group_by(*by_origin)
        for variable_id, key, before_ms in await connection.execute(query):
            found[variable_id, key] = before_ms
    return found


class Span(NamedTuple):
    """Readings of a variable that arrived from a time to another one, both inclusive."""

    variable_id: int
    from_ms: int
    to_ms: int


Stored = dict[Origin, tuple[int, int]]
"""(reading id, received_at_ms) of what is stored under an origin."""


async def origins(connection: AsyncConnection, span: Span, keys: Iterable[int], *, waiting: bool) -> Stored:
    """What is stored under these keys in a span; when `waiting`, after the commit of what others insert there.

    A span has its own statement: the ranges of several in one are each compared with every row.
    """
    is_in_span = and_(_d.telemetry_data_id == span.variable_id, _d.received_at_ms.between(span.from_ms, span.to_ms))
    return await _origins(connection, and_(is_in_span, _d.origin_key.in_(keys)), waiting)


async def origins_at(connection: AsyncConnection, moments: Iterable[tuple[int, int]]) -> Stored:
    """What is stored under any key at these (variable, time), after the commit of what others insert there."""
    found: Stored = {}
    ordered = sorted(moments)
    for start in range(0, len(ordered), _ASK_AT_ONCE):
        asked = tuple_(_d.telemetry_data_id, _d.received_at_ms).in_(ordered[start : start + _ASK_AT_ONCE])
        found |= await _origins(connection, and_(asked, _d.origin_key.is_not(None)), waiting=True)
    return found


async def _origins(connection: AsyncConnection, wanted: ColumnElement[bool], waiting: bool) -> Stored:
    query = select(_d.telemetry_data_id, _d.origin_key, _d.id, _d.received_at_ms).where(wanted).order_by(_d.id)
    rows = await connection.execute(query.with_for_update(read=True) if waiting else query)
    return {(row.telemetry_data_id, row.origin_key): (row.id, row.received_at_ms) for row in rows}
