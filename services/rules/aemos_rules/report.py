"""Reports: a period's readings, variable by variable, as a page with charts and as a table. Pure: no clock or store."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from itertools import pairwise
from statistics import median
from typing import NamedTuple
from zoneinfo import ZoneInfo

from aemos_core.times import rfc3339
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

_GAP_FACTOR = 3
_WIDTH, _HEIGHT = 720, 120
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MINUTE = 60_000
PERIODS = {
    "last-hour": _MINUTE,
    "today": 15 * _MINUTE,
    "yesterday": 15 * _MINUTE,
    "last-week": 120 * _MINUTE,
    "last-month": 480 * _MINUTE,
}
"""What a report can be about, and how long the parts of it are that its charts show, in ms: at most 100."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """The readings of a part of the period; `at_ms`: where it begins."""

    at_ms: int
    count: int
    minimum: float
    average: float
    maximum: float


class Alarm(NamedTuple):
    """An alarm that was raised in the period, or active when it began; `cleared_at_ms` 0: active still."""

    device_uuid: str
    type: str
    severity: str
    raised_at_ms: int
    cleared_at_ms: int


@dataclass(frozen=True, slots=True)
class Series:
    """A variable of a sensor over the period; buckets without readings are left out."""

    device_uuid: str
    sensor_uuid: str
    sensor_name: str
    variable: str
    buckets: Sequence[Bucket]


@dataclass(frozen=True, slots=True)
class Report:
    """What a report is made of. The period is [from, to), in ms since 1970 UTC, shown in `timezone`."""

    title: str
    bucket_ms: int
    from_ms: int
    to_ms: int
    timezone: str
    series: Sequence[Series]
    alarms: Sequence[Alarm]


@dataclass(frozen=True, slots=True)
class Line:
    """One variable's row; None where there were no readings. Gaps are [from, to) in ms."""

    series: Series
    count: int
    minimum: float | None
    average: float | None
    maximum: float | None
    gaps: Sequence[tuple[int, int]]
    alarms: int


def period(name: str, at_ms: int, timezone: str) -> tuple[int, int]:
    """The [from, to) of one of PERIODS as seen at a time, with days as clocks in the zone have them."""
    zone = ZoneInfo(timezone)
    now = datetime.fromtimestamp(at_ms / 1000, zone)
    if name == "last-hour":
        hour = at_ms // 3_600_000 * 3_600_000
        return hour - 3_600_000, hour
    today = now.date()
    monday, first = today - timedelta(today.weekday()), today.replace(day=1)
    days = {
        "today": (today, today + timedelta(1)),
        "yesterday": (today - timedelta(1), today),
        "last-week": (monday - timedelta(7), monday),
        "last-month": ((first - timedelta(1)).replace(day=1), first),
    }
    begin, end = (_midnight(day, zone) for day in days[name])
    return begin, at_ms if name == "today" else end


def _midnight(day: date, zone: ZoneInfo) -> int:
    return int(datetime.combine(day, time(), zone).astimezone(UTC).timestamp()) * 1000


def joined(buckets: Sequence[Bucket]) -> Bucket | None:
    """All of them as one; None where there is no reading."""
    count = sum(bucket.count for bucket in buckets)
    if not count:
        return None
    average = sum(bucket.average * bucket.count for bucket in buckets) / count
    lowest, highest = min(bucket.minimum for bucket in buckets), max(bucket.maximum for bucket in buckets)
    return Bucket(buckets[0].at_ms, count, lowest, average, highest)


def lines(report: Report) -> list[Line]:
    """A row for each variable."""
    by_device: dict[str, int] = {}
    for alarm in report.alarms:
        by_device[alarm.device_uuid] = by_device.get(alarm.device_uuid, 0) + 1
    return [_line(series, report, by_device.get(series.device_uuid, 0)) for series in report.series]


def to_csv(report: Report) -> str:
    """A line for each variable, times in UTC (RFC 4180). What a spreadsheet would take for a formula is quoted."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        ["device", "sensor", "sensor_name", "variable", "from", "to", "count", "min", "avg", "max", "gaps",
         "gap_seconds", "alarms"]
    )  # fmt: skip
    span = (rfc3339(report.from_ms), rfc3339(report.to_ms))
    for line in lines(report):
        series = line.series
        names = (series.device_uuid, series.sensor_uuid, series.sensor_name, series.variable)
        missing = sum(end - begin for begin, end in line.gaps) // 1000
        values = (line.count, line.minimum, line.average, line.maximum, len(line.gaps), missing, line.alarms)
        writer.writerow([*map(_harmless, names), *span, *("" if value is None else value for value in values)])
    return text.getvalue()


def to_html(report: Report, pictures: Mapping[int, str] | None = None) -> str:
    """A page that needs nothing else. `pictures`: what charts are instead of inline SVG, by row, such as "cid:0"."""
    rows = lines(report)
    charts = [Markup(chart(line, report)) for line in rows] if pictures is None else []
    zone = ZoneInfo(report.timezone)

    def shown(ms: int) -> str:
        return datetime.fromtimestamp(ms / 1000, zone).strftime("%Y-%m-%d %H:%M")

    template = _environment().get_template("report.html.jinja")
    return template.render(report=report, lines=rows, charts=charts, pictures=pictures, shown=shown)


def chart(line: Line, report: Report) -> str:
    """An SVG without text, for it must not need fonts: the average as a line in the band from least to greatest."""
    if line.minimum is None or line.maximum is None:
        return _SVG.format(body="")
    low, high = line.minimum, line.maximum
    scale = (_HEIGHT - 10) / (high - low or 1.0)

    def x(at_ms: int) -> str:
        return f"{(at_ms - report.from_ms) / (report.to_ms - report.from_ms) * _WIDTH:.1f}"

    def y(value: float) -> str:
        return f"{_HEIGHT - 5 - (value - low) * scale:.1f}"

    parts = []
    for run in _unbroken(line, report.bucket_ms):
        middle = [(x(b.at_ms + report.bucket_ms // 2), b) for b in run]
        upper = [f"{at},{y(b.maximum)}" for at, b in middle]
        lower = [f"{at},{y(b.minimum)}" for at, b in reversed(middle)]
        average = " ".join(f"{at},{y(b.average)}" for at, b in middle)
        parts.append(f'<polygon points="{" ".join(upper + lower)}" fill="#b7d3ee" stroke="#b7d3ee"/>')
        parts.append(
            f'<polyline points="{average}" fill="none" stroke="#1b5e9e" stroke-width="2" stroke-linecap="round"/>'
        )
    for alarm in report.alarms:
        if alarm.device_uuid == line.series.device_uuid and alarm.raised_at_ms >= report.from_ms:
            at = x(alarm.raised_at_ms)
            parts.append(f'<path d="M{at} 0V{_HEIGHT}" stroke="#c62828" stroke-width="2"/>')
    return _SVG.format(body="".join(parts))


_SVG = (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}">'
    '<rect width="100%" height="100%" fill="#f6f8fa"/>{body}</svg>'
)


def _line(series: Series, report: Report, alarms: int) -> Line:
    whole, gaps = joined(series.buckets), _gaps(series, report)
    if whole is None:
        return Line(series, 0, None, None, None, gaps, alarms)
    least, average, most = _short(whole.minimum), _short(whole.average), _short(whole.maximum)
    return Line(series, whole.count, least, average, most, gaps, alarms)


def _gaps(series: Series, report: Report) -> list[tuple[int, int]]:
    """Stretches without readings, at least a bucket, that are three times the usual distance between readings."""
    if not series.buckets:
        return [(report.from_ms, report.to_ms)]
    length, starts = report.bucket_ms, [bucket.at_ms for bucket in series.buckets]
    step = median(later - earlier for earlier, later in pairwise(starts)) if len(starts) > 1 else length
    usual = step * len(starts) / sum(bucket.count for bucket in series.buckets)
    shortest = max(length, _GAP_FACTOR * usual - length)
    ends = [report.from_ms, *(bucket.at_ms + length for bucket in series.buckets)]
    begins = [*starts, report.to_ms]
    return [(end, begin) for end, begin in zip(ends, begins, strict=True) if begin - end >= shortest]


def _unbroken(line: Line, length: int) -> list[list[Bucket]]:
    runs: list[list[Bucket]] = []
    breaks = {begin for begin, _ in line.gaps}
    for bucket in line.series.buckets:
        if not runs or runs[-1][-1].at_ms + length in breaks:
            runs.append([])
        runs[-1].append(bucket)
    return runs


def _short(value: float) -> float:
    """Finer than any sensor, and without binary noise."""
    return float(f"{value:.10g}")


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


@cache
def _environment() -> Environment:
    return Environment(loader=PackageLoader("aemos_rules"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
