"""Readings out of the database: pages, aggregates and the newest, each a sweep of the clustered primary key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aemos_core.database import Database
from sqlalchemy import ColumnElement, Select, and_, func, or_, select, text, union_all

from aemos_ingest import tables as t
from aemos_ingest.intervals import Span
from aemos_ingest.registry_store import AnyRow

END_OF_TIME = 2**53
_c = t.data_stream.c
_KEY = (_c.telemetry_data_id, _c.received_at_ms, _c.id)
_AT_ONCE = 100
"""Selects in one UNION, which SQLite limits to 500."""

_OF_NUMBERS: dict[str, Callable[[Any], Any]] = {"min": func.min, "max": func.max, "avg": func.avg, "sum": func.sum}
AGGREGATES = (*_OF_NUMBERS, "first", "last", "count")
"""In the order in which a row has those that are wanted."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Which readings of some variables: [from_ms, to_ms), in order of (time, id), at most `limit` behind `after`."""

    from_ms: int
    to_ms: int
    limit: int
    newest_first: bool = False
    after: tuple[int, int] | None = None

    def holds(self) -> list[ColumnElement[bool]]:
        """As conditions. The range begins at the last page's end: a database makes no range of a tuple comparison."""
        conditions = [_c.received_at_ms >= self.from_ms, _c.received_at_ms < self.to_ms]
        if self.after is not None:
            ms, last_id = self.after
            if self.newest_first:
                conditions += [_c.received_at_ms <= ms, or_(_c.received_at_ms < ms, _c.id < last_id)]
            else:
                conditions += [_c.received_at_ms >= ms, or_(_c.received_at_ms > ms, _c.id > last_id)]
        return conditions

    def sorted(self, query: Select[Any], ms: Any, reading_id: Any) -> Select[Any]:
        """The first `limit` of a query in this order."""
        keys = (ms.desc(), reading_id.desc()) if self.newest_first else (ms, reading_id)
        return query.order_by(*keys).limit(self.limit)


async def page(database: Database, variable_ids: Sequence[int], cut: Cut) -> Sequence[AnyRow]:
    """Readings of at most 100 variables, merged. Only keys are merged; of values no more are read than are given."""
    if len(variable_ids) == 1:
        query = cut.sorted(_readings_of(variable_ids[0], cut, t.data_stream), _c.received_at_ms, _c.id)
    else:
        parts = [cut.sorted(_readings_of(v, cut, *_KEY), _c.received_at_ms, _c.id).subquery() for v in variable_ids]
        keys = union_all(*(select(part) for part in parts)).subquery()
        first = cut.sorted(select(keys), keys.c.received_at_ms, keys.c.id).subquery()
        same = and_(*(column == first.c[column.name] for column in _KEY))
        query = cut.sorted(select(t.data_stream).join(first, same), _c.received_at_ms, _c.id)
    async with database.read() as connection:
        rows: Sequence[AnyRow] = (await connection.execute(query)).all()
    return rows


def _readings_of(variable_id: int, cut: Cut, *columns: Any) -> Select[Any]:
    return select(*columns).where(_c.telemetry_data_id == variable_id, *cut.holds())


async def aggregates(
    database: Database, variable_ids: Sequence[int], span: Span, bounds: tuple[int, int], wanted: Sequence[str]
) -> Sequence[AnyRow]:
    """A row (telemetry_data_id, start, count, then what is wanted) for each interval with readings.

    One sweep for each variable; then, for "first" and "last", one look at the primary key for each interval.
    """
    offset = (_c.received_at_ms - span.start_ms) % span.width_ms
    start = (_c.received_at_ms - offset).label("start")
    numbers = [_OF_NUMBERS[name](_c.number).label(name) for name in _OF_NUMBERS if name in wanted]
    edges = [func.min(_c.received_at_ms).label("first_ms"), func.max(_c.received_at_ms).label("last_ms")]
    with_edges = "first" in wanted or "last" in wanted
    inner = (
        select(_c.telemetry_data_id, start, func.count().label("n"), *numbers, *(edges if with_edges else ()))
        .where(
            _c.telemetry_data_id.in_(variable_ids),
            _c.received_at_ms >= max(span.start_ms, bounds[0]),
            _c.received_at_ms < min(span.end_ms, bounds[1]),
        )
        .group_by(_c.telemetry_data_id, text("start"))  # MySQL 8 does not see that bound expressions are the same
    )
    async with database.read() as connection:
        query: Select[Any] = _with_edges(inner, wanted) if with_edges else inner
        rows: Sequence[AnyRow] = (await connection.execute(query)).all()
    return rows


def _with_edges(inner: Select[Any], wanted: Sequence[str]) -> Select[Any]:
    of, reading = inner.subquery(), t.data_stream.alias()

    def value(ms: Any, order: Any) -> Any:
        at = and_(reading.c.telemetry_data_id == of.c.telemetry_data_id, reading.c.received_at_ms == ms)
        return select(reading.c.value).where(at).order_by(order).limit(1).correlate(of).scalar_subquery()

    edges = {
        "first": value(of.c.first_ms, reading.c.id).label("first"),
        "last": value(of.c.last_ms, reading.c.id.desc()).label("last"),
    }
    kept = [column for column in of.c if column.name not in ("first_ms", "last_ms")]
    return select(*kept, *(edge for name, edge in edges.items() if name in wanted))


async def newest(database: Database, variable_ids: Sequence[int]) -> list[AnyRow]:
    """The last reading in (time, id) of each variable that has one."""
    found: list[AnyRow] = []
    cut = Cut(0, END_OF_TIME, limit=1, newest_first=True)
    for begin in range(0, len(variable_ids), _AT_ONCE):
        ids = variable_ids[begin : begin + _AT_ONCE]
        parts = [cut.sorted(_readings_of(v, cut, t.data_stream), _c.received_at_ms, _c.id).subquery() for v in ids]
        async with database.read() as connection:
            found += (await connection.execute(union_all(*(select(part) for part in parts)))).all()
    return found
