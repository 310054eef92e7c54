"""Facts about reports: periods over daylight saving, figures, gaps, charts without text, harmless names."""

import csv
import io
import xml.etree.ElementTree as ET

import pytest
import resvg_py
from aemos_core.times import parse_rfc3339, rfc3339
from aemos_rules.report import PERIODS, Alarm, Bucket, Report, Series, chart, lines, period, to_csv, to_html

BERLIN = "Europe/Berlin"
FROM, TO = period("yesterday", parse_rfc3339("2026-03-18T06:00:00Z"), BERLIN)
QUARTER = PERIODS["yesterday"]


@pytest.mark.parametrize(
    ("name", "at", "begin", "end"),
    [
        ("last-hour", "2026-03-30T06:45:10Z", "2026-03-30T05:00", "2026-03-30T06:00"),
        ("today", "2026-03-30T06:45:10Z", "2026-03-29T22:00", "2026-03-30T06:45"),
        ("yesterday", "2026-03-30T06:00:00Z", "2026-03-28T23:00", "2026-03-29T22:00"),  # a day of 23 hours
        ("yesterday", "2026-10-26T06:00:00Z", "2026-10-24T22:00", "2026-10-25T23:00"),  # one of 25
        ("last-week", "2026-03-30T06:00:00Z", "2026-03-22T23:00", "2026-03-29T22:00"),
        ("last-month", "2026-01-01T00:00:00Z", "2025-11-30T23:00", "2025-12-31T23:00"),
    ],
)
def test_periods(name: str, at: str, begin: str, end: str) -> None:
    """Days begin when clocks in the zone say so."""
    assert [rfc3339(ms)[:16] for ms in period(name, parse_rfc3339(at), BERLIN)] == [begin, end]


@pytest.mark.parametrize("name", PERIODS)
def test_a_chart_has_at_most_a_hundred_points(name: str) -> None:
    """So that a report of many variables stays small."""
    begin, end = period(name, parse_rfc3339("2026-11-01T23:59:59Z"), "America/New_York")
    assert (end - begin) / PERIODS[name] <= 100


def series(*quarters: int, name: str = "cellar", count: int = 15) -> Series:
    buckets = [Bucket(FROM + q * QUARTER, count, 20.0, 21.0 + q / 10, 30.0) for q in quarters]
    return Series("device-1", "sensor-1", name, "temperature", buckets)


def report(*of: Series, alarms: tuple[Alarm, ...] = ()) -> Report:
    return Report("Cold <store>", QUARTER, FROM, TO, BERLIN, of, alarms)


def test_figures() -> None:
    """The average counts readings, not parts of the day; alarms are those of the device."""
    buckets = [Bucket(FROM, 1, 1.0, 1.0, 1.0), Bucket(FROM + QUARTER, 3, 2.0, 5.0, 0.1 + 0.2)]
    alarm = Alarm("device-1", "warm", "major", FROM + QUARTER, 0)
    (line,) = lines(report(Series("device-1", "s", "n", "v", buckets), alarms=(alarm, alarm._replace(device_uuid="x"))))
    assert (line.count, line.minimum, line.average, line.maximum, line.alarms) == (4, 1.0, 4.0, 1.0, 1)


@pytest.mark.parametrize(
    ("present", "count", "gaps"),
    [
        (range(96), 15, []),
        ([*range(40), *range(48, 96)], 15, [(40, 48)]),
        (range(10, 90), 15, [(0, 10), (90, 96)]),
        (range(0, 96, 4), 1, []),  # hourly readings: the quarters between are no gaps
        ([*range(0, 40, 4), *range(60, 96, 4)], 1, [(37, 60)]),
        ([], 0, [(0, 96)]),
    ],
)
def test_gaps(present: range, count: int, gaps: list[tuple[int, int]]) -> None:
    """A gap is longer than three times the usual distance between readings."""
    (line,) = lines(report(series(*present, count=count)))
    assert [((begin - FROM) // QUARTER, (end - FROM) // QUARTER) for begin, end in line.gaps] == gaps


def test_a_chart_is_a_picture_without_text() -> None:
    """It is valid SVG, one line for each unbroken stretch, and becomes a PNG on a machine without fonts."""
    whole = report(series(*range(40), *range(48, 96)), alarms=(Alarm("device-1", "warm", "major", FROM + QUARTER, 0),))
    picture = chart(lines(whole)[0], whole)
    tags = [element.tag.rpartition("}")[2] for element in ET.fromstring(picture).iter()]
    assert [tags.count(tag) for tag in ("polyline", "polygon", "path", "text")] == [2, 2, 1, 0]
    assert bytes(resvg_py.svg_to_bytes(svg_string=picture, skip_system_fonts=True)).startswith(b"\x89PNG")


def test_page_and_table() -> None:
    """Names are text, never markup nor formula; pictures stand for the charts in a mail."""
    whole = report(series(*range(96), name="=1+1 <b>"), series())
    page = to_html(whole)
    assert "Cold &lt;store&gt;" in page
    assert "=1+1 &lt;b&gt;" in page
    assert page.count("<svg") == 1
    assert "no readings" in page
    mail = to_html(whole, {0: "cid:0"})
    assert "<svg" not in mail
    assert 'src="cid:0"' in mail
    rows = list(csv.reader(io.StringIO(to_csv(whole))))
    assert rows[1][2] == "'=1+1 <b>"
    assert rows[1][6:] == ["1440", "20.0", "25.75", "30.0", "0", "0", "0"]
    assert rows[2][6:] == ["0", "", "", "", "1", "86400", "0"]
