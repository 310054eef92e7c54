"""Facts about schedules: seconds first, the right instants over daylight saving, mistakes named when saved."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from aemos_core.cron import next_due
from aemos_core.times import parse_rfc3339, rfc3339
from aemos_core.timing import Timing
from aemos_scheduler.words import in_words
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
        ("*/5 * * * *", "UTC", "2026-01-20T10:29:59.999Z", ["20T10:30:00", "20T10:35:00"]),
        ("@hourly", "UTC", "2026-01-20T10:30:00Z", ["20T11:00:00", "20T12:00:00"]),
        (" @Weekly ", "UTC", "2026-01-20T10:30:00Z", ["25T00:00:00", "01T00:00:00"]),
        ("30 9 * jan MON-tue", "UTC", "2026-01-20T09:30:00Z", ["26T09:30:00", "27T09:30:00"]),
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
        ("0 0 0 31 2 *", "UTC", ["cronExpression"]),
        ("*/5 * * * *", "UTC", []),
        ("0 0 31 2 *", "UTC", ["cronExpression"]),
        ("* * * *", "UTC", ["cronExpression"]),
        ("* * * * * * 2030", "UTC", ["cronExpression"]),
        ("R * * * * *", "UTC", ["cronExpression"]),
        ("0,r(1-5) * * * * *", "UTC", ["cronExpression"]),
        ("H H * * * *", "UTC", ["cronExpression"]),
        ("@hourly", BERLIN, []),
        ("@reboot", "UTC", ["cronExpression"]),
        ("@every 5m", "UTC", ["cronExpression"]),
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
def test_refusals(expression: str, timezone: str, locations: list[str]) -> None:
    """A wrong schedule is refused with every field at fault."""
    assert [mistake.loc for mistake in Timing(expression, timezone).check()] == locations


ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"]
START, END = datetime(2025, 1, 1), datetime(2027, 1, 1)


def first_shown(naive: datetime, zone: ZoneInfo) -> int:
    """The instant (ms) at which clocks first show this time, or the next minute that they show at all; by zoneinfo."""
    while (instant := naive.replace(tzinfo=zone).astimezone(UTC)).astimezone(zone).replace(tzinfo=None) != naive:
        naive = naive.replace(second=0) + timedelta(minutes=1)
    return int(instant.timestamp()) * 1000


@pytest.mark.parametrize("name", ZONES)
@pytest.mark.parametrize(
    ("expression", "hours", "minutes", "second", "weekdays"),
    [
        ("0 30 */2 * * *", range(0, 24, 2), (30,), 0, range(7)),
        ("0 */20 2 * * *", (2,), (0, 20, 40), 0, range(7)),
        ("45 15 1 * * *", (1,), (15,), 45, range(7)),
        ("0 59 23 * * sun", (23,), (59,), 0, (6,)),
        ("@daily", (0,), (0,), 0, range(7)),
    ],
)
def test_two_years_against_zoneinfo(
    name: str, expression: str, hours: range, minutes: tuple[int], second: int, weekdays: range
) -> None:
    """Over two years of transitions it is due exactly when clocks first show its times, each once, in order."""
    zone = ZoneInfo(name)
    days = [d for n in range((END - START).days) if (d := START + timedelta(n)).weekday() in weekdays]
    shown = (d.replace(hour=h, minute=m, second=second) for d in days for h in hours for m in minutes)
    expected = sorted({first_shown(time, zone) for time in shown})
    timing, found = Timing(expression, name), [expected[0]]
    while (due := timing.next_after(found[-1])) is not None and due <= expected[-1]:
        found.append(due)
    assert found == expected
    assert timing.next_after(expected[0] - 1) == expected[0]


@pytest.mark.parametrize("name", ZONES)
def test_every_second_over_the_transitions(name: str) -> None:
    """A schedule of seconds is strictly increasing over each transition, and pauses while clocks repeat themselves."""
    zone, timing, day = ZoneInfo(name), Timing("*/7 * * * * *", name), timedelta(days=1)
    days = [START + day * n for n in range(730)]
    changes = [d for d in days if d.replace(tzinfo=zone).utcoffset() != (d + day).replace(tzinfo=zone).utcoffset()]
    assert len(changes) == (0 if name == "UTC" else 4)
    for change in changes[:2]:
        at, end = first_shown(change, zone), first_shown(change + timedelta(hours=4), zone)
        seen: set[datetime] = set()
        while at < end:
            following = next_due(timing.cron_expression, name, at)
            assert following > at
            at = following
            local = datetime.fromtimestamp(at / 1000, zone).replace(tzinfo=None)
            assert local not in seen
            assert local.second % 7 == 0
            seen.add(local)


def test_an_interval_is_counted_from_its_anchor() -> None:
    """Whoever asks, and whenever, gets the same instants."""
    timing = Timing(interval_seconds=90, interval_anchor_ms=1_000)
    assert [timing.next_after(after) for after in (-90_000, 0, 1_000, 90_999, 91_000)] == [
        -89_000,
        1_000,
        91_000,
        91_000,
        181_000,
    ]


@pytest.mark.parametrize("after_ms", [-62_135_596_800_000, 253_402_300_799_000, 253_402_214_400_000])
@pytest.mark.parametrize("timezone", ["UTC", "America/New_York", "Pacific/Auckland"])
def test_at_the_ends_of_time(timezone: str, after_ms: int) -> None:
    """In the years 1 and 9999 nothing fails: what is due is a time that can be written, or there is none."""
    for timing in (Timing("0 0 0 1 1 *", timezone), Timing(interval_seconds=366 * 24 * 3_600)):
        due = timing.next_after(after_ms)
        assert due is None or rfc3339(due)


def test_one_time_only() -> None:
    """A schedule of one time is due once."""
    timing = Timing(run_at_ms=5_000)
    assert [timing.next_after(4_999), timing.next_after(5_000)] == [5_000, None]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([
        Timing("* * * * * *"), Timing("0 */7 * * * *", BERLIN), Timing("* * 3 * * *"), Timing("0 30 2 * * *", BERLIN),
        Timing(interval_seconds=45, interval_anchor_ms=3_000), Timing(run_at_ms=1_793_000_000_000),
    ]),
    st.integers(1_792_900_000_000, 1_793_100_000_000),
    st.integers(0, 3 * 3_600_000),
    st.integers(1, 20),
)  # fmt: skip
def test_the_latest_instants(timing: Timing, after: int, length: int, most: int) -> None:
    """`last` finds by halving what walking forward finds."""
    walked, at = [], timing.next_after(after)
    while at is not None and at <= after + length:
        walked.append(at)
        at = timing.next_after(at)
    assert timing.last(most, after, after + length) == walked[-most:]


@pytest.mark.parametrize(
    ("timing", "locations"),
    [
        (Timing(), ["cronExpression"]),
        (Timing("@hourly", interval_seconds=5), ["cronExpression", "intervalSeconds"]),
        (Timing("@hourly", run_at_ms=5), ["cronExpression", "runAt"]),
        (Timing(interval_seconds=1), []),
        (Timing(interval_seconds=-1), ["intervalSeconds"]),
        (Timing(interval_seconds=10**9), ["intervalSeconds"]),
        (Timing(run_at_ms=5_000, timezone="nowhere"), ["timezone"]),
    ],
)
def test_exactly_one_kind(timing: Timing, locations: list[str]) -> None:
    """A schedule is cron, an interval or one time; what is wrong is named."""
    assert [mistake.loc for mistake in timing.check()] == locations


@pytest.mark.parametrize(
    ("timing", "words"),
    [
        (Timing("*/10 * * * * *"), "Every 10 seconds (UTC)"),
        (Timing("30 2 * * mon-fri", BERLIN), "At 02:30, Monday through Friday (Europe/Berlin)"),
        (Timing("@hourly"), "Every hour (UTC)"),
        (
            Timing(interval_seconds=5_400, interval_anchor_ms=0),
            "Every 1 hour 30 minutes, one of them at 1970-01-01T00:00:00.000Z",
        ),
        (Timing(run_at_ms=1_000), "Once, at 1970-01-01T00:00:01.000Z"),
    ],
)
def test_in_words(timing: Timing, words: str) -> None:
    """A person reads what was typed."""
    assert in_words(timing) == words
