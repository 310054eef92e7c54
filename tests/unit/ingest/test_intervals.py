"""Intervals against zoneinfo itself: they cover the range without a hole and begin where a calendar says."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from aemos_core.errors import AemosError
from aemos_ingest.intervals import Span, spans
from hypothesis import given
from hypothesis import strategies as st

ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Havana", "UTC")
BEGIN = int(datetime(2025, 1, 1, tzinfo=UTC).timestamp()) * 1_000
TWO_YEARS_MS = 2 * 366 * 86_400_000
moments = st.integers(BEGIN, BEGIN + TWO_YEARS_MS)


def starts(found: list[Span]) -> list[int]:
    return [start for span in found for start in span.starts()]


def ms(*parts: int, zone: str = "UTC") -> int:
    return int(datetime(*parts, tzinfo=ZoneInfo(zone)).timestamp()) * 1_000  # type: ignore[arg-type,misc]


def covers(found: list[Span], from_ms: int, to_ms: int) -> bool:
    """Without a hole, and no interval more than the range touches."""
    touching = all(before.end_ms == after.start_ms for before, after in pairwise(found))
    first, last = found[0], found[-1]
    in_first = first.start_ms <= from_ms < first.start_ms + first.width_ms
    return touching and in_first and last.end_ms - last.width_ms < to_ms <= last.end_ms


@given(st.sampled_from(ZONES), st.sampled_from(["day", "week", "month"]), moments, moments)
def test_calendar_intervals_are_the_calendars(zone: str, interval: str, one: int, two: int) -> None:
    """Strictly increasing, over the whole range, each at the first instant of its date in the zone."""
    from_ms, to_ms = min(one, two), max(one, two) + 1
    found = spans(interval, zone, from_ms, to_ms)
    assert covers(found, from_ms, to_ms)
    begins = starts(found)
    assert all(before < after for before, after in pairwise(begins))
    for begin in begins:
        at, before = (datetime.fromtimestamp(begin / 1_000 - back, ZoneInfo(zone)) for back in (0, 0.001))
        assert at.date() > before.date()
        assert interval != "week" or at.weekday() == 0
        assert interval != "month" or at.day == 1


@given(st.sampled_from(ZONES), moments, moments)
def test_every_date_has_its_day(zone: str, one: int, two: int) -> None:
    """As many days as the calendar counts from the first date to the last."""
    from_ms, to_ms = min(one, two), max(one, two) + 1
    dates = [datetime.fromtimestamp(at / 1_000, ZoneInfo(zone)).date() for at in (from_ms, to_ms - 1)]
    assert len(starts(spans("day", zone, from_ms, to_ms))) == (dates[1] - dates[0]).days + 1


@given(st.sampled_from([("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000), ("1d", 86_400_000)]), moments, st.data())
def test_fixed_intervals_count_from_the_epoch(interval: tuple[str, int], from_ms: int, data: st.DataObject) -> None:
    """One span, aligned to its width, over the whole range."""
    to_ms = from_ms + data.draw(st.integers(1, interval[1] * 1_000))
    found = spans(interval[0], "", from_ms, to_ms)
    assert len(found) == 1
    assert found[0].start_ms % interval[1] == 0
    assert covers(found, from_ms, to_ms)


def test_a_day_may_have_23_and_25_hours() -> None:
    """Berlin changes its clocks on 2026-03-29 and 2026-10-25."""
    for month, day, hours in ((3, 29, 23), (10, 25, 25), (6, 1, 24)):
        noon = ms(2026, month, day, 12, zone="Europe/Berlin")
        (found,) = spans("day", "Europe/Berlin", noon, noon + 1)
        assert (found.start_ms, found.width_ms) == (ms(2026, month, day, zone="Europe/Berlin"), hours * 3_600_000)


def test_a_year_of_days_is_a_handful_of_spans() -> None:
    """Days of one length are one sweep of the database."""
    found = spans("day", "Europe/Berlin", ms(2026, 1, 1, zone="Europe/Berlin"), ms(2027, 1, 1, zone="Europe/Berlin"))
    assert [span.count for span in found] == [87, 1, 209, 1, 67]


def test_a_date_that_never_was_is_no_interval() -> None:
    """Apia went from 2011-12-29 to 2011-12-31."""
    from_ms, to_ms = ms(2011, 12, 29, zone="Pacific/Apia"), ms(2012, 1, 1, zone="Pacific/Apia")
    assert starts(spans("day", "Pacific/Apia", from_ms, to_ms)) == [from_ms, from_ms + 86_400_000]


def test_no_interval_is_the_range_and_no_range_is_nothing() -> None:
    """A report asks for one figure of a period."""
    assert spans("", "", 5, 17) == [Span(5, 12, 1)]
    assert spans("day", "", 17, 17) == []


@pytest.mark.parametrize(
    ("interval", "zone", "loc"),
    [
        ("1s", "", "interval"),
        ("0m", "", "interval"),
        ("5 m", "", "interval"),
        ("year", "", "interval"),
        ("day", "Mars/Olympus", "timezone"),
        ("day", "../etc/passwd", "timezone"),
    ],
)
def test_what_cannot_be_is_refused(interval: str, zone: str, loc: str) -> None:
    """With its place; "1s" gives too many."""
    with pytest.raises(AemosError) as refused:
        spans(interval, zone, BEGIN, BEGIN + TWO_YEARS_MS)
    assert [error.loc for error in refused.value.errors] == [loc]


def test_calendar_intervals_are_bounded_too() -> None:
    """The edge of what is allowed is allowed."""
    days = 86_400_000
    assert len(starts(spans("day", "UTC", BEGIN, BEGIN + 10 * days, most=10))) == 10
    with pytest.raises(AemosError):
        spans("day", "UTC", BEGIN, BEGIN + 10 * days + 1, most=10)
