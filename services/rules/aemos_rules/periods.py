"""What a report can be about. Pure."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

_MINUTE = 60_000
PERIODS = {
    "last-hour": _MINUTE,
    "today": 15 * _MINUTE,
    "yesterday": 15 * _MINUTE,
    "last-week": 120 * _MINUTE,
    "last-month": 480 * _MINUTE,
}
"""What a report can be about, and how long the parts of it are that its charts show, in ms: at most 100."""


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
