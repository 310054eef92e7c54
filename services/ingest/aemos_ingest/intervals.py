"""The intervals of a range: fixed ones, and days, weeks and months as a time zone's calendar has them. Pure.

Times are milliseconds since 1970 UTC. Intervals of one length that follow each other are one `Span`, which a database
aggregates in one sweep by arithmetic: a year of days is three, because only two of its days have 23 or 25 hours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import groupby, pairwise

from aemos_core.cron import wrong_zone, zone_of
from aemos_core.errors import invalid

MOST = 10_000
_UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_FIXED = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_CALENDAR = ("day", "week", "month")
LATEST_MS = 253_339_228_800_000
"""The year 9998: a calendar reaches to the end of 9999."""


@dataclass(frozen=True, slots=True)
class Span:
    """`count` intervals of `width_ms`, the first beginning at `start_ms`."""

    start_ms: int
    width_ms: int
    count: int

    @property
    def end_ms(self) -> int:
        """The end of the last one, exclusive."""
        return self.start_ms + self.width_ms * self.count

    def starts(self) -> range:
        """The beginning of each."""
        return range(self.start_ms, self.end_ms, self.width_ms)


def spans(interval: str, timezone: str, from_ms: int, to_ms: int, most: int = MOST) -> list[Span]:
    """Every interval that [from, to) touches, in order and without a hole; one of the range itself for no interval.

    Both are within 1970 and `LATEST_MS`. INVALID when the interval or the time zone cannot be read, or there are more
    than `most`.
    """
    if from_ms >= to_ms:
        return []
    if not interval:
        return [Span(from_ms, to_ms - from_ms, 1)]
    if fixed := _FIXED.fullmatch(interval):
        return [_fixed(int(fixed[1]) * _UNIT_MS[fixed[2]], from_ms, to_ms, most)]
    if interval not in _CALENDAR:
        raise invalid("interval", 'must be such as "30s", "5m", "1h" or "1d", or "day", "week" or "month"')
    return list(_joined(_boundaries(interval, timezone or "UTC", from_ms, to_ms, most)))


def _fixed(width_ms: int, from_ms: int, to_ms: int, most: int) -> Span:
    start = from_ms - from_ms % width_ms
    count = -(-(to_ms - start) // width_ms)
    if count > most:
        raise _too_many(most)
    return Span(start, width_ms, count)


def _boundaries(interval: str, timezone: str, from_ms: int, to_ms: int, most: int) -> Iterator[int]:
    """Where intervals begin, from the one that holds `from` to the first that begins at `to` or later."""
    if wrong := wrong_zone(timezone):
        raise invalid("timezone", wrong)
    zone, found = zone_of(timezone), 0
    day, last = _begin(interval, datetime.fromtimestamp(from_ms / 1_000, zone).date()), -_UNIT_MS["d"] * 366
    while found <= most:
        # A midnight that the clock skips is where it jumps to; of one that it shows twice, the first (PEP 495).
        start = int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()) * 1_000
        if start > last:  # not the day that a zone left out when it crossed the date line
            yield start
            last, found = start, found + 1
        if start >= to_ms:
            return
        day = _next(interval, day)
    raise _too_many(most)


def _begin(interval: str, day: date) -> date:
    if interval == "month":
        return day.replace(day=1)
    return day - timedelta(days=day.weekday()) if interval == "week" else day


def _next(interval: str, day: date) -> date:
    if interval == "month":
        return (day + timedelta(days=31)).replace(day=1)
    return day + timedelta(days=7 if interval == "week" else 1)


def _joined(boundaries: Iterable[int]) -> Iterator[Span]:
    for width_ms, run in groupby(pairwise(boundaries), lambda pair: pair[1] - pair[0]):
        starts = [start for start, _ in run]
        yield Span(starts[0], width_ms, len(starts))


def _too_many(most: int) -> Exception:
    return invalid("interval", f"gives more than {most} intervals", "too_many_intervals")
