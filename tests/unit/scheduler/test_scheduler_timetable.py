"""Facts about the timetable: order, changes while it runs, what was missed, and runs that overlap."""

import random
from zlib import crc32

import pytest
from aemos_core.times import parse_rfc3339
from aemos_core.timing import Timing
from aemos_scheduler.domain import HORIZON_MS, Instant, Schedule, Timetable, by_overlap, partition_of

NOW = parse_rfc3339("2026-01-20T10:30:00.250Z")
SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000


def schedule(chain: int, expression: str, organization: int = 1, since: int = NOW, **policies: str) -> Schedule:
    return Schedule(chain, organization, Timing(expression), since_ms=since, **policies)  # type: ignore[arg-type]


EVERY_SECOND = schedule(7, "* * * * * *")
HOURLY = schedule(1, "0 0 * * * *")
FIVE_MINUTES = schedule(12, "0 */5 * * * *")


def timetable_of(*schedules: Schedule, fired: dict[int, int] | None = None, at: int = NOW) -> Timetable:
    timetable = Timetable()
    timetable.put(schedules, fired or {}, at)
    return timetable


def fired_until(timetable: Timetable, end: int) -> list[tuple[int, int]]:
    """(chain id, seconds after 10:30:00) of everything fired until `end`, each at its time."""
    found = []
    while (due := timetable.next_at()) is not None and due <= end:
        instants = timetable.take(due, 100)
        timetable.fired(instants)
        found += [(i.schedule.rule_chain_id, (i.planned_at_ms - NOW // MINUTE * MINUTE) // SECOND) for i in instants]
    return found


def test_everything_in_its_order() -> None:
    """Chains come in the order of their instants, each instant once."""
    timetable = timetable_of(HOURLY, FIVE_MINUTES, schedule(3, "30 29,30 * * * *"))
    assert fired_until(timetable, NOW + 30 * MINUTE) == [
        (3, 30),
        *((12, minutes * 60) for minutes in (5, 10, 15, 20, 25)),
        (1, 1800),
        (12, 1800),
    ]


@pytest.mark.parametrize(
    ("expression", "down", "misfire", "seconds_ago"),
    [
        # An hour down: 12 missed, the latest 300 s ago or just now.
        ("0 */5 * * * *", HOUR, "run-once", [0]),
        ("0 */5 * * * *", HOUR, "run-all", [300 * n for n in range(11, -1, -1)]),
        ("0 */5 * * * *", HOUR, "skip", [0]),
        ("0 25 * * * *", HOUR, "run-once", [300]),
        ("0 25 * * * *", HOUR, "run-all", [300]),
        ("0 25 * * * *", HOUR, "skip", []),
        ("* * * * * *", HOUR, "run-once", [0]),
        ("* * * * * *", HOUR, "run-all", list(range(99, -1, -1))),
        ("* * * * * *", HOUR, "skip", [0]),
        # Less than a minute is late, not missed: everything runs.
        ("*/10 * * * * *", 55 * SECOND, "run-once", [50, 40, 30, 20, 10, 0]),
        ("*/10 * * * * *", 55 * SECOND, "skip", [50, 40, 30, 20, 10, 0]),
        ("0 0 * * * *", 10 * MINUTE, "run-all", []),
    ],
)
def test_after_an_outage(expression: str, down: int, misfire: str, seconds_ago: list[int]) -> None:
    """What a start finds missed is made up for by the schedule's policy, counted from what was fired last."""
    of_policy = schedule(4, expression, since=0, misfire=misfire)
    timetable = timetable_of(of_policy, fired={4: NOW - down})
    taken = timetable.take(NOW, 1_000)
    assert [(NOW - i.planned_at_ms) // SECOND for i in taken] == seconds_ago
    timetable.fired(taken)
    assert timetable.take(NOW, 1_000) == []
    following = timetable.next_at()
    assert following is not None
    assert following == of_policy.timing.next_after(NOW)


def test_nothing_was_due_before_it_was_saved() -> None:
    """A schedule saved, or resumed, ten minutes ago was never due before; paused it is not due at all."""
    since = NOW - 10 * MINUTE
    timetable = timetable_of(schedule(12, "0 */5 * * * *", since=since, misfire="run-all"))
    assert [(NOW - i.planned_at_ms) // SECOND for i in timetable.take(NOW, 100)] == [300, 0]
    paused = Schedule(12, 1, Timing("0 */5 * * * *"), paused=True, since_ms=since)
    assert timetable_of(paused).next_at() is None


def test_what_was_missed_long_ago_is_forgotten() -> None:
    """History does not reach back for ever, so neither do misfires: nothing could be fired a second time."""
    yearly = schedule(9, "0 0 0 1 12 *", since=0)
    assert timetable_of(yearly).take(NOW, 10) == []
    recent = schedule(9, "0 0 0 1 1 *", since=0)
    assert NOW - timetable_of(recent).take(NOW, 10)[0].planned_at_ms < HORIZON_MS


def test_two_that_decide_at_different_times_run_no_more_than_one() -> None:
    """Of two schedulers that start after an outage the second adds only what is due after the first began."""
    every = schedule(4, "* * * * * *", since=0)
    first, second = (timetable_of(every, fired={4: NOW - HOUR}) for _ in range(2))
    late = 3 * SECOND
    alone = {i.planned_at_ms for i in first.take(NOW, 10)}
    both = alone | {i.planned_at_ms for i in second.take(NOW + late, 10)}
    assert all(planned > NOW for planned in both - alone)


def test_edited_while_running_looks_forward() -> None:
    """A schedule saved now is not due for a time before it was saved; an edited one neither."""
    timetable = timetable_of(HOURLY)
    timetable.put([schedule(1, "0 30 * * * *"), FIVE_MINUTES], {1: NOW - HOUR}, NOW)
    assert timetable.take(NOW, 100) == []
    assert timetable.next_at() == NOW - 250 + 5 * MINUTE


def test_only_what_differs_is_put() -> None:
    """A schedule that is here as it is stays as it is, with what is due of it."""
    timetable = timetable_of(EVERY_SECOND)
    again = schedule(7, "* * * * * *")
    assert timetable.differing([again, HOURLY]) == [HOURLY]


def test_removed_while_firing() -> None:
    """A chain that is removed, or changed, while its instant is fired does not come back with its old schedule."""
    for now_there in ([], [schedule(7, "0 0 * * * *")]):
        for say in ("fired", "put_back"):
            timetable = timetable_of(EVERY_SECOND)
            taken = timetable.take(NOW + SECOND, 100)
            timetable.put(now_there, {}, NOW + SECOND)
            timetable.keep_only({s.rule_chain_id for s in now_there})
            getattr(timetable, say)(taken)
            assert timetable.take(NOW + 10 * SECOND, 100) == []


def test_put_back_is_due_still() -> None:
    """What could not be fired comes again, with what became due meanwhile, until a minute has passed."""
    timetable = timetable_of(EVERY_SECOND)
    first = timetable.take(NOW + SECOND, 100)
    timetable.put_back(first)
    assert timetable.take(NOW + 59 * SECOND, 100)[:1] == first
    timetable.put_back(first)
    later = timetable.take(NOW + 10 * MINUTE, 100)
    assert later == [Instant(EVERY_SECOND, NOW - 250 + 10 * MINUTE)]


def test_take_is_bounded() -> None:
    """No more than asked for is taken, and the rest stays due."""
    timetable = timetable_of(*(schedule(chain, "0 31 * * * *") for chain in range(1, 11)))
    at = NOW + MINUTE
    sizes = []
    while taken := timetable.take(at, 4):
        timetable.fired(taken)
        sizes.append(len(taken))
    assert sizes == [4, 4, 2]


def test_never_due_is_told() -> None:
    """A schedule that cannot be read stops nobody else's and is told."""
    timetable, broken = Timetable(), schedule(5, "when pigs fly")
    assert timetable.put([broken, EVERY_SECOND], {}, NOW) == [broken]
    assert [p.due_ms is None for p in timetable.of_organization(1, 0, 10)] == [True, False]


def test_only_the_own_organization() -> None:
    """A list holds the schedules of one organization by chain id, a page at a time."""
    chains = list(range(1, 30))
    random.Random(1).shuffle(chains)
    timetable = timetable_of(*(schedule(chain, "0 0 * * * *", organization=1 + chain % 2) for chain in chains))
    assert [p.schedule.rule_chain_id for p in timetable.of_organization(1, 0, 4)] == [2, 4, 6, 8]
    assert [p.schedule.rule_chain_id for p in timetable.of_organization(1, 24, 4)] == [26, 28]
    assert timetable.of_organization(3, 0, 4) == []


@pytest.mark.parametrize(
    ("policy", "unfinished", "expected"),
    [
        ("allow", 0, "rrr"),
        ("allow", 5, "rrr"),
        ("skip", 0, "rss"),
        ("skip", 1, "sss"),
        ("queue", 0, "rqq"),
        ("queue", 1, "qqq"),
        ("queue", 99, "qqs"),
    ],
)
def test_overlap(policy: str, unfinished: int, expected: str) -> None:
    """What runs, waits or is skipped while runs of the same chain are not over; another chain is not concerned."""
    of_policy, other = schedule(4, "* * * * * *", overlap=policy), schedule(5, "* * * * * *", overlap="skip")
    instants = [Instant(of_policy, at) for at in (1_000, 2_000, 3_000)]
    runs, queued, skipped = by_overlap([*instants, Instant(other, 1_000)], {4: unfinished} if unfinished else {})
    assert "".join("r" if i in runs else "q" if i in queued else "s" for i in instants) == expected
    assert Instant(other, 1_000) in runs
    assert len(runs) + len(queued) + len(skipped) == 4


def test_partition() -> None:
    """The partition of a chain is that of the text of its id, as for a device's uuid."""
    assert [partition_of(chain, 16) for chain in (1, 5, 12)] == [crc32(text) % 16 for text in (b"1", b"5", b"12")]
