"""Facts about schedules: seconds first, the right instants over daylight saving, mistakes named when saved."""

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from aemos_core.cron import next_due, validate
from aemos_core.errors import AemosError, Kind
from aemos_core.times import parse_rfc3339, rfc3339
from hypothesis import given, settings
from hypothesis import strategies as st

BERLIN = "Europe/Berlin"  # 2026: 02:00 -> 03:00 on 29 March (01:00 UTC), 03:00 -> 02:00 on 25 October (01:00 UTC)


def due(expression: str, timezone: str, after: str, count: int = 1) -> list[str]:
    """The next `count` instants after `after`, without their milliseconds and date."""
    at, found = parse_rfc3339(after), []
    for _ in range(count):
        at = next_due(expression, timezone, at)
        found.append(rfc3339(at)[8:19])
    return found


@pytest.mark.parametrize(
    ("expression", "timezone", "after", "expected"),
    [
        ("*/10 * * * * *", "UTC", "2026-01-20T10:30:00Z", ["20T10:30:10", "20T10:30:20"]),
        ("0 */5 * * * *", "UTC", "2026-01-20T10:29:59.999Z", ["20T10:30:00", "20T10:35:00"]),
        ("0 0 * * * *", "UTC", "2026-01-20T10:00:00Z", ["20T11:00:00", "20T12:00:00"]),
        ("0 0 0 * * *", "America/New_York", "2026-01-20T10:00:00Z", ["21T05:00:00", "22T05:00:00"]),
        ("0 0 0 * * *", "Asia/Kathmandu", "2026-01-20T10:00:00Z", ["20T18:15:00", "21T18:15:00"]),
        ("0 0 9 * * mon", BERLIN, "2026-03-23T08:00:00Z", ["30T07:00:00", "06T07:00:00"]),
        ("0 0 0 L * *", "UTC", "2026-02-01T00:00:00Z", ["28T00:00:00", "31T00:00:00"]),
        ("* * * * * *", "UTC", "2026-01-20T10:30:00.500Z", ["20T10:30:01", "20T10:30:02"]),
        # Skipped: 02:30 runs at 03:00 (01:00 UTC), once, and many skipped times run once together.
        ("0 30 2 * * *", BERLIN, "2026-03-28T12:00:00Z", ["29T01:00:00", "30T00:30:00"]),
        ("0 */20 2 * * *", BERLIN, "2026-03-28T12:00:00Z", ["29T01:00:00", "30T00:00:00"]),
        ("0 0 3 * * *", BERLIN, "2026-03-28T12:00:00Z", ["29T01:00:00", "30T01:00:00"]),
        # Twice: 02:30 runs at its first coming (00:30 UTC), not at 01:30 UTC again.
        ("0 30 2 * * *", BERLIN, "2026-10-24T12:00:00Z", ["25T00:30:00", "26T01:30:00"]),
        ("0 30 * * * *", BERLIN, "2026-10-25T00:00:00Z", ["25T00:30:00", "25T02:30:00"]),
        ("0 30 2 * * *", BERLIN, "2026-10-25T01:10:00Z", ["26T01:30:00"]),
        ("0 0 3 * * *", BERLIN, "2026-10-25T01:10:00Z", ["25T02:00:00"]),
        ("0 59 23 * * *", "America/Santiago", "2026-04-04T12:00:00Z", ["05T02:59:00", "06T03:59:00"]),
        # Half an hour only: Lord Howe goes back from 02:00 to 01:30 on 5 April (15:00 UTC on the 4th).
        ("0 45 1 * * *", "Australia/Lord_Howe", "2026-04-04T00:00:00Z", ["04T14:45:00", "05T15:15:00"]),
    ],
)
def test_instants(expression: str, timezone: str, after: str, expected: list[str]) -> None:
    """A schedule is due at these instants."""
    assert due(expression, timezone, after, len(expected)) == expected


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    st.sampled_from(["*/7 * * * * *", "0 30 * * * *", "0 15 2 * * *", "0 0 0 1 * *", "30 59 1 * * 6,0"]),
    st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1)),
)
def test_next_due_at_any_time(timezone: str, expression: str, moment: datetime) -> None:
    """What comes next is later, never a second coming, shows what was asked for or follows a skip."""
    after = int(moment.replace(tzinfo=UTC).timestamp() * 1000)
    at = next_due(expression, timezone, after)
    assert at > after
    assert at % 1000 == 0
    assert next_due(expression, timezone, at - 1) == at
    wall = datetime.fromtimestamp(at / 1000, ZoneInfo(timezone))
    a_second_before = datetime.fromtimestamp(at / 1000 - 1, ZoneInfo(timezone))
    skipped = wall.replace(tzinfo=None) - a_second_before.replace(tzinfo=None) > timedelta(seconds=1)
    assert wall.fold == 0
    assert skipped or wall.second % 7 == 0 or wall.second == 30


@pytest.mark.parametrize(
    ("expression", "timezone", "locations"),
    [
        ("0 */5 * * * *", "UTC", []),
        ("0 0 0 29 2 *", BERLIN, []),
        ("0 0 0 * * 5#2", "UTC", []),
        ("0 0 0 1 mar,apr fri", "UTC", []),
        ("0 0 31 2 *", "UTC", ["cronExpression"]),
        ("0 0 0 31 2 *", "UTC", ["cronExpression"]),
        ("*/5 * * * *", "UTC", ["cronExpression"]),
        ("* * * * * * 2030", "UTC", ["cronExpression"]),
        ("R * * * * *", "UTC", ["cronExpression"]),
        ("0,r(1-5) * * * * *", "UTC", ["cronExpression"]),
        ("H H * * * *", "UTC", ["cronExpression"]),
        ("@hourly", "UTC", ["cronExpression"]),
        ("", "UTC", ["cronExpression"]),
        ("60 * * * * *", "UTC", ["cronExpression"]),
        ("\uff11 * * * * *", "UTC", ["cronExpression"]),
        ("0 0 0 * * " + "1," * 60 + "1", "UTC", ["cronExpression"]),
        ("* * * * * *", "Europe/Atlantis", ["timezone"]),
        ("* * * * * *", "Europe", ["timezone"]),
        ("* * * * * *", "../../etc/passwd", ["timezone"]),
        ("* * * * * *", "x" * 5_000, ["timezone"]),
        ("* * * * * *", "", ["timezone"]),
        ("* * * * * *", "U\x00TC", ["timezone"]),
        ("never", "nowhere", ["cronExpression", "timezone"]),
    ],
)
def test_validate(expression: str, timezone: str, locations: list[str]) -> None:
    """A wrong schedule is refused as invalid, with every field at fault."""
    with pytest.raises(AemosError) if locations else nullcontext() as raised:
        validate(expression, timezone)
    if raised:
        assert raised.value.kind is Kind.INVALID
        assert [mistake.loc for mistake in raised.value.errors] == locations
