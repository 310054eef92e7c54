"""Cron expressions in an IANA time zone. Pure: no clock, no store.

Six fields, seconds first; five, which are due at second 0; or a name such as "@hourly".

Matching is done on the wall clock's reading, and each reading is then turned into the instant at which the wall clock
first shows it. So daylight saving follows from one rule: a time that is skipped runs once, at the next time that
exists, and a time that comes twice runs once, the first time.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import croniter

from aemos_core.errors import FieldError

_LONGEST = 100
_NAMED = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
_NOT_FIXED = re.compile(r"(^|[\s,])[hr]", re.IGNORECASE)
"""croniter's own `H` (hashed) and `R` (random): two processes would not agree on when that is."""
_EPOCH = datetime(1970, 1, 1)
_KNOWN = 8_192


@lru_cache(_KNOWN)
def next_due(expression: str, timezone: str, after_ms: int) -> int:
    """The first instant after `after_ms` at which the schedule is due; both in ms since 1970 UTC.

    ValueError when expression or time zone cannot be read, or nothing is due within 50 years. Remembered, because many
    schedules ask the same.
    """
    zone, after = zone_of(timezone), after_ms // 1000
    shown = after + _offset(zone, after)
    first = _instant(zone, shown)
    if first < after:  # the wall clock shows this for the second time: go on where what it repeats ends
        shown = _change(zone, first, after) + _offset(zone, first) - 1
    return _instant(zone, int(_matcher(expression).get_next(float, start_time=shown))) * 1000


def six_fields(expression: str) -> str:
    """The expression with all its fields, seconds first; ValueError when it has not so many."""
    named = _NAMED.get(expression.strip().lower())
    if named is not None:
        return named
    fields = expression.split()
    if not expression.isascii() or len(fields) not in (5, 6):
        raise ValueError(
            'must have six fields, seconds first, such as "0 */5 * * * *", or five, or be one of the names'
        )
    return " ".join(fields if len(fields) == 6 else ["0", *fields])


def mistakes(expression: str, timezone: str) -> list[FieldError]:
    """Why a schedule could never run as its author means: `cronExpression`, `timezone` or both."""
    found = (("cronExpression", _wrong_expression(expression)), ("timezone", wrong_zone(timezone)))
    return [FieldError(loc, message) for loc, message in found if message]


def _wrong_expression(expression: str) -> str:
    if len(expression) > _LONGEST:
        return f"must have at most {_LONGEST} characters"
    try:
        next_due(expression, "UTC", 0)
    except ValueError as error:
        return str(error)
    if not croniter.is_valid(six_fields(expression), second_at_beginning=True, strict=True):
        return "names a day that never comes"
    return ""


def wrong_zone(timezone: str) -> str:
    """What is wrong with a time zone; empty when nothing is."""
    try:
        zone_of(timezone)
    except ValueError as error:
        return str(error)
    return ""


@lru_cache(_KNOWN)
def _matcher(expression: str) -> croniter:
    """Parsing takes four times as long as matching. Not for threads: a matcher remembers where it is."""
    fields = six_fields(expression)
    if _NOT_FIXED.search(fields):
        raise ValueError("must not use H or R")
    try:
        return croniter(fields, 0, second_at_beginning=True)
    except ValueError:
        raise ValueError("is not a cron expression") from None


@lru_cache(_KNOWN)
def zone_of(timezone: str) -> ZoneInfo:
    """The zone of an IANA name; ValueError when there is none."""
    try:
        return ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: the name of a directory, such as "America"
        raise ValueError("is not an IANA time zone") from None


def _offset(zone: ZoneInfo, instant: int) -> int:
    """Seconds that the wall clock is ahead of UTC at an instant (seconds since 1970)."""
    offset = datetime.fromtimestamp(instant, zone).utcoffset() or timedelta()
    return int(offset.total_seconds())


def _instant(zone: ZoneInfo, shown: int) -> int:
    """When the wall clock first shows `shown` (seconds since 1970 on it), or would if it did not skip it (PEP 495)."""
    moment = (_EPOCH + timedelta(seconds=shown)).replace(tzinfo=zone)
    before, behind = int(moment.timestamp()), int(moment.replace(fold=1).timestamp())
    return before if before <= behind else _change(zone, behind, before)


def _change(zone: ZoneInfo, low: int, high: int) -> int:
    """The instant in (low, high] from which the offset of `high` holds."""
    target = _offset(zone, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _offset(zone, middle) == target else (middle, high)
    return high
