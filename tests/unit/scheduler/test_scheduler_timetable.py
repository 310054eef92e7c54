"""Facts about the timetable: order, changes while it runs, what was missed."""

import random
from zlib import crc32

from aemos_core.times import parse_rfc3339
from aemos_scheduler.domain import Instant, Schedule, Timetable, partition_of

NOW = parse_rfc3339("2026-01-20T10:30:00.250Z")
SECOND, MINUTE = 1_000, 60_000


def schedule(chain: int, expression: str, organization: int = 1) -> Schedule:
    return Schedule(chain, organization, expression, "UTC")


EVERY_SECOND = schedule(7, "* * * * * *")
HOURLY = schedule(1, "0 0 * * * *")
FIVE_MINUTES = schedule(12, "0 */5 * * * *")


def started(*schedules: Schedule, at: int = NOW) -> Timetable:
    """A timetable that has been running, so that nothing was missed."""
    timetable = Timetable()
    timetable.replace([], at)
    timetable.replace(schedules, at)
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
    timetable = started(HOURLY, FIVE_MINUTES, schedule(3, "30 29,30 * * * *"))
    assert fired_until(timetable, NOW + 30 * MINUTE) == [
        (3, 30),
        *((12, minutes * 60) for minutes in (5, 10, 15, 20, 25)),
        (1, 1800),
        (12, 1800),
    ]


def test_start_fires_the_latest_missed() -> None:
    """At start each chain's latest instant of the last minute is due, older ones and earlier ones are skipped."""
    timetable = Timetable()
    timetable.replace([EVERY_SECOND, FIVE_MINUTES, HOURLY, schedule(4, "1 29 * * * *")], NOW)
    assert [(i.schedule.rule_chain_id, NOW - i.planned_at_ms) for i in timetable.take(NOW, 100)] == [
        (4, 59_250),
        (7, 250),
        (12, 250),
    ]


def test_new_while_running_looks_forward() -> None:
    """A schedule saved now is not due for a time before it was saved; an edited one neither."""
    timetable = started(HOURLY)
    timetable.replace([schedule(1, "0 30 * * * *"), FIVE_MINUTES], NOW)
    assert timetable.take(NOW, 100) == []
    assert timetable.next_at() == NOW - 250 + 5 * MINUTE


def test_replace_keeps_what_is_due() -> None:
    """An unchanged schedule that is due when the copy is refreshed is still fired, once."""
    timetable = started(EVERY_SECOND)
    timetable.replace([EVERY_SECOND], NOW + 10 * SECOND)
    taken = timetable.take(NOW + 10 * SECOND, 100)
    timetable.replace([EVERY_SECOND, HOURLY], NOW + 10 * SECOND)
    timetable.fired(taken)
    assert [i.planned_at_ms for i in taken] == [NOW + 750]
    assert fired_until(timetable, NOW + 3 * SECOND) == [(7, 2), (7, 3)]


def test_removed_while_firing() -> None:
    """A chain that is removed, or changed, while its instant is fired does not come back with its old schedule."""
    for now_there in ([], [schedule(7, "0 0 * * * *")]):
        for say in ("fired", "put_back"):
            timetable = started(EVERY_SECOND)
            taken = timetable.take(NOW + SECOND, 100)
            timetable.replace(now_there, NOW + SECOND)
            getattr(timetable, say)(taken)
            assert timetable.take(NOW + 10 * SECOND, 100) == []


def test_put_back_is_due_still() -> None:
    """What could not be fired comes again, until it is a minute late: then the latest one in its place."""
    timetable = started(EVERY_SECOND)
    first = timetable.take(NOW + SECOND, 100)
    timetable.put_back(first)
    assert timetable.take(NOW + 59 * SECOND, 100) == first
    timetable.put_back(first)
    later = timetable.take(NOW + 10 * MINUTE, 100)
    assert later == [Instant(EVERY_SECOND, NOW - 250 + 10 * MINUTE)]


def test_take_is_bounded() -> None:
    """No more than asked for is taken, and the rest stays due."""
    timetable = started(*(schedule(chain, "0 31 * * * *") for chain in range(1, 11)))
    at = NOW + MINUTE
    sizes = []
    while taken := timetable.take(at, 4):
        timetable.fired(taken)
        sizes.append(len(taken))
    assert sizes == [4, 4, 2]


def test_never_due_is_told_once() -> None:
    """A schedule that cannot be read stops nobody else's and is told once."""
    timetable, broken = Timetable(), schedule(5, "when pigs fly")
    assert timetable.replace([broken, EVERY_SECOND], NOW) == [broken]
    assert timetable.replace([broken, EVERY_SECOND], NOW) == []
    assert [p.due_ms is None for p in timetable.of_organization(1, 0, 10)] == [True, False]


def test_only_the_own_organization() -> None:
    """A list holds the schedules of one organization by chain id, a page at a time."""
    timetable = Timetable()
    chains = list(range(1, 30))
    random.Random(1).shuffle(chains)
    timetable.replace([schedule(chain, "0 0 * * * *", organization=1 + chain % 2) for chain in chains], NOW)
    assert [p.schedule.rule_chain_id for p in timetable.of_organization(1, 0, 4)] == [2, 4, 6, 8]
    assert [p.schedule.rule_chain_id for p in timetable.of_organization(1, 24, 4)] == [26, 28]
    assert timetable.of_organization(3, 0, 4) == []


def test_partition() -> None:
    """The partition of a chain is that of the text of its id, as for a device's uuid."""
    assert [partition_of(chain, 16) for chain in (1, 5, 12)] == [crc32(text) % 16 for text in (b"1", b"5", b"12")]
