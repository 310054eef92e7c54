"""The scheduler as real processes on one database, and its store on both kinds of database."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import aemos_scheduler
import grpc
import pytest
import sqlalchemy
from aemos.v1 import job_pb2, schedule_pb2_grpc
from aemos.v1 import schedule_pb2 as pb
from aemos_core.database import Database, open_database
from aemos_core.identity import Caller, set_caller
from aemos_core.names import RULE_CHAINS_CHANGED
from aemos_core.outbox import Row
from aemos_core.paging import Page
from aemos_core.redis_link import open_redis
from aemos_core.times import now_ms
from aemos_core.timing import Timing
from aemos_scheduler.domain import Instant, Schedule, partition_of
from aemos_scheduler.store import FiringStore
from aemos_scheduler.tables import OUTBOX, firing, firing_end, firing_open

from tests.integration.conftest import Open
from tests.support.outbox import FakeOutbox
from tests.support.ports import free_port
from tests.support.redis_server import POLL_S, redis_server, until
from tests.support.scheduler import PARTITIONS, SECRET, START_S, World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    with redis_server(tmp_path) as url:
        async with World(url, f"sqlite+aiosqlite:///{tmp_path}/{{service}}.db").open() as opened:
            yield opened


def assert_each_second_once(planned: list[int]) -> None:
    assert sorted(planned) == list(range(min(planned), max(planned) + 1, 1000))


async def test_two_schedulers_fire_once(world: World) -> None:
    """Two processes on one database make one run of each instant, and one goes on alone when the other is stopped."""
    world.rules.add(7, 1, "* * * * * *")
    world.rules.add(8, 2, "* * * * * *")
    world.rules.add(9, 2, "*/2 * * * * *")
    with world.schedulers(0, 0) as (first, second):
        await until(lambda: len(world.runs_of(7)) >= 5, START_S)
        await until(lambda: world.rules.calls >= 4, 5, "both schedulers asked for both pages")
        first.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(first.wait, 10) == 0
        so_far = len(world.runs_of(7))
        await until(lambda: len(world.runs_of(7)) >= so_far + 3, 10)
        second.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(second.wait, 10) == 0
    for chain in (7, 8):
        assert_each_second_once(world.runs_of(chain))
    assert max(Counter(world.runs).values()) == 1
    assert all(planned % 2000 == 0 for planned in world.runs_of(9))
    assert world.organizations == {1, 2}
    assert await world.fired() == set(world.runs)


async def test_killed_scheduler_loses_nothing(world: World) -> None:
    """After kill -9 of one of two, every instant still runs; the outbox of the dead one is taken over."""
    for chain in range(20, 40):
        world.rules.add(chain, 1, "* * * * * *")
    with world.schedulers(0, 0) as (first, _):
        await until(lambda: len(world.runs_of(20)) >= 3, START_S)
        first.kill()
        killed_at = now_ms()
        await until(lambda: max(world.runs_of(39), default=0) > killed_at + 1_000, 10)
        fired = await world.fired()
        await until(lambda: fired <= set(world.runs), START_S)
    for chain in range(20, 40):
        assert_each_second_once(list(set(world.runs_of(chain))))


async def test_a_change_is_in_force_everywhere_within_two_seconds(world: World) -> None:
    """A published hint brings a new schedule to every scheduler at once; each of them would fire it alone."""
    with world.schedulers(0, 0) as processes:
        await until(lambda: world.rules.changes >= 2, START_S, "both schedulers are up")
        for chain, process in ((7, None), (8, processes[0])):
            if process is not None:
                process.kill()
                process.wait()
            world.rules.add(chain, 1, "* * * * * *")
            async with open_redis(world.redis_url) as redis:
                await redis.publish(RULE_CHAINS_CHANGED, b"")
            await until(lambda chain=chain: len(world.runs_of(chain)) >= 1, 2)  # type: ignore[misc]


async def test_after_an_hour_down_the_right_thing_happens(world: World) -> None:
    """Each chain goes on from its last firing by its misfire policy, within 5 s of the start."""
    assert world.start("migrate").wait(START_S) == 0
    now = now_ms()
    missed = (now - 60_000) // 60_000 * 60_000 - 1_800_000  # of chains that ran every half minute until then
    async with open_database(world.database_url.format(service="scheduler")) as database:
        store = FiringStore(database, FakeOutbox(), PARTITIONS)
        await store.fire(instants_of([1, 2, 3], missed))
    for chain, policy in ((1, "run-once"), (2, "skip"), (3, "run-all")):
        world.rules.add(chain, 1, "*/30 * * * * *", misfire=policy, since_ms=1)
    with world.schedulers(0):
        await until(lambda: world.rules.calls >= 1, START_S)
        started = now_ms()
        await until(lambda: len(world.runs_of(3)) > 55, 5)
        await until(lambda: len(world.runs_of(1)) >= 1, 5)
    assert sorted(set(world.runs_of(3))) == list(range(missed + 30_000, max(world.runs_of(3)) + 1, 30_000))
    for chain in (1, 2):  # one for all of them, and what was due while the test ran
        assert len(world.runs_of(chain)) <= 1 + (now_ms() - started) // 30_000 + 1
        assert min(world.runs_of(chain)) >= started - 30_000 - 2_000


async def test_api(world: World) -> None:
    """A user sees the own organization's schedules and firings in pages, and nobody else's."""
    for chain in (7, 8, 9):
        world.rules.add(chain, 1, "* * * * * *")
    world.rules.add(10, 2, "0 0 0 1 1 *")
    port = free_port()
    with world.schedulers(port):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = schedule_pb2_grpc.SchedulerServiceStub(channel)
            await asyncio.wait_for(channel.channel_ready(), START_S)
            await until(lambda: len(world.runs_of(7)) >= 3, 10)
            mine, other = world.identity.bearer(1), world.identity.bearer(2)

            page = await stub.ListScheduledChains(pb.ListScheduledChainsRequest(page_size=2), metadata=mine)
            assert [s.rule_chain_id for s in page.schedules] == [7, 8]
            assert abs(page.schedules[0].next_at.ToMilliseconds() - now_ms()) <= 1_500
            assert page.schedules[0].timezone == "UTC"
            request = pb.ListScheduledChainsRequest(page_size=2, page_token=page.next_page_token)
            page = await stub.ListScheduledChains(request, metadata=mine)
            assert ([s.rule_chain_id for s in page.schedules], page.next_page_token) == ([9], "")
            page = await stub.ListScheduledChains(pb.ListScheduledChainsRequest(), metadata=other)
            assert [s.rule_chain_id for s in page.schedules] == [10]

            fired = await stub.ListFirings(pb.ListFiringsRequest(rule_chain_id=7, page_size=2), metadata=mine)
            rest = pb.ListFiringsRequest(rule_chain_id=7, page_token=fired.next_page_token)
            older = await stub.ListFirings(rest, metadata=mine)
            planned = [f.planned_at.ToMilliseconds() for f in (*fired.firings, *older.firings)]
            assert len(planned) >= 3
            assert planned == list(range(planned[0], planned[0] - 1000 * len(planned), -1000))
            assert (fired.firings[0].kind, fired.firings[0].outcome) == ("scheduled", "running")
            assert not (await stub.ListFirings(pb.ListFiringsRequest(rule_chain_id=7), metadata=other)).firings
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ListFirings(pb.ListFiringsRequest(rule_chain_id=7))
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def until_read(call: Callable[[], Awaitable[Any]]) -> Any:
    """What it answers once the scheduler has read the schedules; until then it does not know whose they are."""
    async with asyncio.timeout(5):
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            await asyncio.sleep(POLL_S)


async def test_what_users_do(world: World) -> None:
    """Run now, pause, resume and preview, for a chain of the own organization only; ends are told in the history."""
    world.rules.add(7, 1, "0 0 0 1 1 *")
    port, service = free_port(), (("authorization", f"Service {SECRET}"),)
    with world.schedulers(port):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = schedule_pb2_grpc.SchedulerServiceStub(channel)
            await asyncio.wait_for(channel.channel_ready(), START_S)
            mine, other = world.identity.bearer(1), world.identity.bearer(2)
            run_now = pb.RunScheduleNowRequest(rule_chain_id=7)
            fired = await until_read(lambda: stub.RunScheduleNow(run_now, metadata=mine))
            planned = fired.planned_at.ToMilliseconds()
            assert (fired.kind, fired.outcome, abs(planned - now_ms()) < 2_000) == ("manual", "running", True)
            await until(lambda: world.runs == [(7, planned)], 5)
            end = pb.FiringEnd(
                rule_chain_id=7, planned_at_ms=planned, started_at_ms=planned, finished_at_ms=planned + 5
            )
            for outcome in ("failed", "completed"):  # the first report counts
                end.outcome, end.error, end.trace_id = outcome, "x" * 1_000, "ab" * 16
                await stub.FinishFirings(pb.FinishFiringsRequest(ends=[end]), metadata=service)
            (told,) = (await stub.ListFirings(pb.ListFiringsRequest(rule_chain_id=7), metadata=mine)).firings
            assert (told.outcome, told.error, told.trace_id) == ("failed", "x" * 200, "ab" * 16)
            assert told.finished_at.ToMilliseconds() - told.started_at.ToMilliseconds() == 5

            paused = await stub.PauseSchedule(pb.PauseScheduleRequest(rule_chain_id=7), metadata=mine)
            assert (paused.paused, paused.HasField("next_at")) == (True, False)
            resumed = await stub.ResumeSchedule(pb.ResumeScheduleRequest(rule_chain_id=7), metadata=mine)
            assert (resumed.paused, resumed.HasField("next_at")) == (False, True)
            assert resumed.description == "At 00:00, on day 1 of the month, only in January (UTC)"

            request = pb.PreviewScheduleRequest(cron_expression="0 9 * * mon", timezone="Europe/Berlin", count=3)
            request.after.FromJsonString("2026-03-20T00:00:00Z")
            shown = await stub.PreviewSchedule(request, metadata=mine)
            assert shown.description == "At 09:00, only on Monday (Europe/Berlin)"
            assert [i.ToJsonString()[5:13] for i in shown.instants] == ["03-23T08", "03-30T07", "04-06T07"]
            for wrong, code in (
                (
                    stub.PreviewSchedule(pb.PreviewScheduleRequest(cron_expression="no"), metadata=mine),
                    "INVALID_ARGUMENT",
                ),
                (stub.PreviewSchedule(pb.PreviewScheduleRequest(rule_chain_id=7), metadata=other), "NOT_FOUND"),
                (stub.RunScheduleNow(pb.RunScheduleNowRequest(rule_chain_id=7), metadata=other), "NOT_FOUND"),
                (stub.GetScheduledChain(pb.GetScheduledChainRequest(rule_chain_id=8), metadata=mine), "NOT_FOUND"),
                (stub.FinishFirings(pb.FinishFiringsRequest(), metadata=mine), "PERMISSION_DENIED"),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await wrong
                assert refused.value.code().name == code


@pytest.fixture
def service() -> str:
    return "scheduler"


@pytest.fixture
async def databases(database: Database, open_owned: Open) -> list[Database]:
    """Two engines over one migrated database, as two processes have."""
    return [database, await open_owned(aemos_scheduler)]


def instants_of(chains: Iterable[int], *planned: int, overlap: str = "allow") -> list[Instant]:
    return [Instant(Schedule(c, 1, Timing("* * * * * *"), overlap=overlap), at) for c in chains for at in planned]


def runs_in(rows: Iterable[Row]) -> list[job_pb2.ScheduledRun]:
    return [run for row in rows for run in job_pb2.ScheduledRuns.FromString(row.payload).runs]


def end(chain: int, planned: int) -> pb.FiringEnd:
    return pb.FiringEnd(rule_chain_id=chain, planned_at_ms=planned, outcome="completed")


async def test_claims_are_exclusive(databases: list[Database]) -> None:
    """Two processes that claim the same instants in other orders at the same time get each of them once."""
    outboxes = [FakeOutbox(), FakeOutbox()]
    stores = [FiringStore(database, box, PARTITIONS) for database, box in zip(databases, outboxes, strict=True)]
    for at in range(1000, 11_000, 1000):
        instants = instants_of(range(1, 40), at)
        claims = await asyncio.gather(stores[0].fire(instants), stores[1].fire(instants[::-1]))
        assert Counter(claim for claimed in claims for claim in claimed) == Counter(instants)
    sent = [row for box in outboxes for row in box.sent]
    runs = runs_in(sent)
    assert len({(run.rule_chain_id, run.planned_at_ms) for run in runs}) == len(runs) == 390
    assert all(row.weight == len(runs_in([row])) for row in sent)
    assert all(partition_of(run.rule_chain_id, PARTITIONS) == row.partition for row in sent for run in runs_in([row]))
    assert await planned_of(stores[1], 1, Page(3, 0)) == ([10_000, 9_000, 8_000], "8000")
    assert await planned_of(stores[1], 1, Page(3, 3_000)) == ([2_000, 1_000], "")
    assert await planned_of(stores[1], 2, Page(3, 0)) == ([], "")
    assert await stores[0].last_fired([5, 6, 77]) == {5: 10_000, 6: 10_000}


async def planned_of(store: FiringStore, organization: int, page: Page) -> tuple[list[int], str]:
    set_caller(Caller(organization, 1, "viewer"))
    rows, token = await store.list_firings(5, page)
    return [row.planned_at_ms for row in rows], token


async def test_claims_in_part(databases: list[Database]) -> None:
    """Of instants some of which are another process', exactly the others are claimed, in one transaction."""
    store = FiringStore(databases[0], FakeOutbox(), PARTITIONS)
    assert len(await store.fire(instants_of(range(0, 100, 3), 1_000, 2_000))) == 68
    claimed = await store.fire(instants_of(range(100), 1_000, 2_000))
    assert {i.schedule.rule_chain_id for i in claimed} == set(range(100)) - set(range(0, 100, 3))
    assert len(claimed) == 132


async def test_runs_that_must_not_overlap(databases: list[Database]) -> None:
    """Queued runs go one by one as those before them end, skipped ones say so, and a repeated end changes nothing."""
    set_caller(Caller(1, 1, "viewer"))
    outbox = FakeOutbox()
    store = FiringStore(databases[0], outbox, PARTITIONS)
    queue, skip = instants_of([5], 1_000, 2_000, 3_000, overlap="queue"), instants_of([6], 1_000, 2_000, overlap="skip")
    assert len(await store.fire([*queue, *skip])) == 5
    assert sorted((r.rule_chain_id, r.planned_at_ms) for r in runs_in(outbox.sent)) == [(5, 1_000), (6, 1_000)]
    outcomes = {row.planned_at_ms: (row.queued, row.outcome) for row in (await store.list_firings(5, Page(9, 0)))[0]}
    assert outcomes == {1_000: (False, None), 2_000: (True, None), 3_000: (True, None)}
    assert (await store.list_firings(6, Page(1, 0)))[0][0].outcome == "skipped"
    for planned, released in ((1_000, [2_000]), (1_000, []), (2_000, [3_000]), (3_000, [])):
        outbox.sent.clear()
        await store.finish([end(5, planned), end(99, planned)])
        assert [run.planned_at_ms for run in runs_in(outbox.sent)] == released
    outbox.sent.clear()
    await store.finish([end(6, 1_000)])
    await store.fire(instants_of([5], 4_000, overlap="queue") + instants_of([6], 4_000, overlap="skip"))
    assert sorted(run.rule_chain_id for run in runs_in(outbox.sent)) == [5, 6]
    assert not await store.lost()


async def test_ends_and_claims_at_once_lose_no_queued_run(databases: list[Database]) -> None:
    """Whether a run ends just before or just after the next is claimed, the next one runs, once."""
    outboxes = [FakeOutbox(), FakeOutbox()]
    stores = [FiringStore(database, box, PARTITIONS) for database, box in zip(databases, outboxes, strict=True)]
    for planned in range(1_000, 41_000, 1_000):
        await asyncio.gather(
            stores[0].fire(instants_of([5], planned, overlap="queue")),
            stores[1].finish([end(5, planned - 1_000)]),
        )
    sent = [run.planned_at_ms for box in outboxes for run in runs_in(box.sent)]
    assert sorted(sent) == list(range(1_000, 41_000, 1_000))


async def test_history_is_bounded(databases: list[Database]) -> None:
    """A chain keeps its newest firings, with their ends, and what is older than 90 days goes."""
    store = FiringStore(databases[0], FakeOutbox(), PARTITIONS)
    await store.fire(instants_of([5, 6], *range(1_000, 1_101_000, 1_000)))
    await store.finish([end(5, planned) for planned in range(1_000, 1_101_000, 1_000)])
    await store.prune(5)
    for table in (firing, firing_end):
        assert await count(databases[0], table, 5) == 1_000
    assert await count(databases[0], firing, 6) == 1_100
    async with databases[0].write() as connection:
        await connection.execute(sqlalchemy.update(firing).where(firing.c.rule_chain_id == 5).values(created_at_ms=1))
    await store.expire()
    assert await count(databases[0], firing, 5) == await count(databases[0], firing_end, 5) == 500


async def count(database: Database, table: sqlalchemy.Table, chain: int) -> int:
    query = sqlalchemy.select(sqlalchemy.func.count()).select_from(table).where(table.c.rule_chain_id == chain)
    async with database.read() as connection:
        return int((await connection.execute(query)).scalar_one())


async def test_migration_is_what_the_store_declares(databases: list[Database]) -> None:
    """The newest migration leaves the tables that the store uses."""
    async with databases[0].read() as connection:
        tables = await connection.run_sync(lambda sync: sqlalchemy.inspect(sync).get_table_names())
    assert {t.name for t in (firing, firing_end, firing_open, OUTBOX.rows, OUTBOX.relays)} <= set(tables)
