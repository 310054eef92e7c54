"""Facts about the two components: they sleep until something happens, and failures stop neither."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import pytest
from aemos.v1 import rule_chain_pb2 as pb
from aemos_core.errors import unavailable
from aemos_core.sweeping import Sweep
from aemos_core.times import now_ms
from aemos_core.timing import Timing
from aemos_scheduler import service
from aemos_scheduler.domain import Instant, Schedule, Timetable
from aemos_scheduler.service import Clock, ScheduleCopy, Tidier

from tests.support.redis_server import until


def every_second() -> Schedule:
    """A schedule saved just now."""
    return Schedule(7, 1, Timing("* * * * * *"), since_ms=now_ms())


def schedule_to_pb(schedule: Schedule) -> pb.Schedule:
    return pb.Schedule(
        rule_chain_id=schedule.rule_chain_id,
        organization_id=schedule.organization_id,
        cron_expression=schedule.timing.cron_expression,
        interval_seconds=schedule.timing.interval_seconds,
        interval_anchor_ms=schedule.timing.interval_anchor_ms,
        misfire_policy=schedule.misfire,
        overlap_policy=schedule.overlap,
        since_ms=schedule.since_ms,
    )


class FakeFirings:
    """Remembers what was fired and how late (ms); refuses while `down`."""

    def __init__(self) -> None:
        self.down = False
        self.calls = 0
        self.planned: list[int] = []
        self.late: list[int] = []
        self.pruned: list[int] = []
        self.expired = 0

    async def fire(self, instants: Sequence[Instant]) -> list[Instant]:
        self.calls += 1
        if self.down:
            raise unavailable("the database did not answer")
        self.planned += [i.planned_at_ms for i in instants]
        self.late += [now_ms() - i.planned_at_ms for i in instants]
        return list(instants)

    async def last_fired(self, chains: Iterable[int]) -> dict[int, int]:
        return {}

    async def lost(self) -> list[tuple[int, int]]:
        return []

    async def prune(self, rule_chain_id: int) -> None:
        self.pruned.append(rule_chain_id)

    async def expire(self) -> None:
        self.expired += 1


class FakeRules:
    """rules with these schedules, which knows of changes for as long as `remembers`; does not answer while `down`."""

    def __init__(self, *schedules: Schedule) -> None:
        self.present = list(schedules)
        self.down = False
        self.remembers = True
        self.calls: list[float] = []

    async def ListSchedules(self, request: pb.ListSchedulesRequest, wait_for_ready: bool) -> pb.ListSchedulesResponse:
        self._called()
        at = int(request.page_token or 0)
        token = str(at + 1) if at + 1 < len(self.present) else ""
        schedules = map(schedule_to_pb, self.present[at : at + 1])
        return pb.ListSchedulesResponse(schedules=schedules, next_page_token=token, now_ms=1)

    async def ListScheduleChanges(self, request: pb.ListScheduleChangesRequest) -> pb.ListScheduleChangesResponse:
        self._called()
        return pb.ListScheduleChangesResponse(
            schedules=map(schedule_to_pb, self.present),
            removed_rule_chain_ids=[] if self.present else [7],
            incomplete=not self.remembers,
            now_ms=request.since_ms + 1,
        )

    def _called(self) -> None:
        self.calls.append(time.monotonic())
        if self.down:
            raise unavailable("a service did not answer")


class Running:
    """Both components over fakes."""

    def __init__(self, rules: FakeRules) -> None:
        self.firings, self.timetable = FakeFirings(), Timetable()
        self.tidier = Tidier(self.firings)  # type: ignore[arg-type]
        self.clock = Clock(self.timetable, self.firings, self.tidier)  # type: ignore[arg-type]
        self.copy = ScheduleCopy(rules, self.firings, self.timetable, self.clock)  # type: ignore[arg-type]


@asynccontextmanager
async def running(rules: FakeRules) -> AsyncIterator[Running]:
    """Runs both; they end at once when told to."""
    parts, stop = Running(rules), asyncio.Event()
    async with asyncio.timeout(15), asyncio.TaskGroup() as group:
        tasks = [group.create_task(parts.clock.run(stop)), group.create_task(parts.copy.run(stop))]
        try:
            yield parts
        finally:
            stop.set()
            _, late = await asyncio.wait(tasks, timeout=1)
            assert not late


async def test_each_second_once() -> None:
    """A schedule of every second is fired once for each, within a few milliseconds of it."""
    async with running(FakeRules(every_second())) as parts:
        await until(lambda: len(parts.firings.planned) >= 2, 5)
    planned = parts.firings.planned
    assert planned == list(range(planned[0], planned[0] + 1000 * len(planned), 1000))
    assert max(parts.firings.late[1:]) < 100


async def test_new_schedule_wakes_the_clock() -> None:
    """A clock with nothing to do sleeps; a hint brings it a schedule that it then keeps."""
    rules = FakeRules()
    async with running(rules) as parts:
        await until(lambda: len(rules.calls) == 1, 1)
        rules.present = [every_second()]
        parts.copy.hint()
        await until(lambda: len(parts.firings.planned) >= 1, 3)
    assert parts.firings.calls == len(parts.firings.planned)


async def test_the_wall_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due in an hour is fired soon after the clock was put forward by an hour, or the machine slept for it."""
    schedule = Schedule(7, 1, Timing(interval_seconds=3_600, interval_anchor_ms=now_ms()), since_ms=now_ms())
    async with running(FakeRules(schedule)) as parts:
        await until(lambda: parts.timetable.next_at() is not None, 1)
        await asyncio.sleep(0)  # the clock is asleep
        monkeypatch.setattr(service, "now_ms", lambda: now_ms() + 3_601_000)
        await until(lambda: len(parts.firings.planned) == 1, 3)


async def test_hints_are_coalesced() -> None:
    """A hundred hints in a tenth of a second make one more call, not before 0.2 s have passed."""
    rules = FakeRules()
    async with running(rules) as parts:
        await until(lambda: len(rules.calls) == 1, 1)
        for _ in range(100):
            parts.copy.hint()
            await asyncio.sleep(0.001)
        await until(lambda: len(rules.calls) >= 2, 1)
    assert len(rules.calls) == 2
    assert rules.calls[1] - rules.calls[0] >= 0.19


async def test_retries_while_rules_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks again soon until rules answers."""
    monkeypatch.setattr(service, "RETRY_SECONDS", 0.02)
    rules = FakeRules(every_second())
    rules.down = True
    async with running(rules) as parts:
        await until(lambda: len(rules.calls) >= 3, 1)
        assert parts.timetable.next_at() is None
        rules.down = False
        await until(lambda: parts.timetable.next_at() is not None, 1)


async def test_copy_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    """While rules is down the clock goes on with what it has."""
    monkeypatch.setattr(service, "RETRY_SECONDS", 0.02)
    rules = FakeRules(every_second())
    async with running(rules) as parts:
        await until(lambda: parts.timetable.next_at() is not None, 1)
        rules.down = True
        parts.copy.hint()
        await until(lambda: len(rules.calls) >= 3, 2)
        fired = len(parts.firings.planned)
        await until(lambda: len(parts.firings.planned) > fired, 2)


async def test_instants_wait_for_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be fired now is fired later: no instant is lost, none comes twice."""
    monkeypatch.setattr(service, "RETRY_SECONDS", 0.05)
    async with running(FakeRules(every_second())) as parts:
        parts.firings.down = True
        await until(lambda: parts.firings.calls >= 1, 1)
        down_at, calls = now_ms() // 1000, parts.firings.calls
        await until(lambda: now_ms() // 1000 > down_at and parts.firings.calls > calls, 2)
        assert parts.firings.planned == []
        parts.firings.down = False
        await until(lambda: len(parts.firings.planned) >= 2, 1)
    planned = parts.firings.planned
    assert planned == list(range(planned[0], planned[0] + 1000 * len(planned), 1000))


@pytest.mark.parametrize("remembers", [True, False])
async def test_a_schedule_that_is_gone_is_not_fired(remembers: bool) -> None:
    """Whether rules tells what changed or has to list everything again."""
    rules = FakeRules(every_second())
    async with running(rules) as parts:
        await until(lambda: parts.timetable.get(7) is not None, 1)
        rules.present, rules.remembers = [], remembers
        parts.copy.hint()
        await until(lambda: parts.timetable.get(7) is None, 2)


async def test_late_runs_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """What is fired more than 5 s after its time is a line in the log, one for many."""
    since = now_ms() - 9_000
    chains = [Schedule(chain, 1, Timing("* * * * * *"), since_ms=since) for chain in (1, 2)]
    async with running(FakeRules(*chains)) as parts:
        await until(lambda: len(parts.firings.planned) >= 16, 3)
    told = [record.getMessage() for record in caplog.records if "late" in record.getMessage()]
    assert 1 <= len(told) <= 2
    assert "more than 5 s late" in told[0]


async def test_a_chain_that_fires_often_is_pruned() -> None:
    """After a hundred firings its history is cut, in the background."""
    firings, stop = FakeFirings(), asyncio.Event()
    tidier = Tidier(firings)  # type: ignore[arg-type]
    schedule = every_second()
    tidier.fired([Instant(schedule, at) for at in range(100)])
    tidying = asyncio.create_task(Sweep(0.01, tidier.tidy, "").run(stop))
    await until(lambda: firings.pruned == [7] and firings.expired > 1, 2)
    stop.set()
    await tidying
