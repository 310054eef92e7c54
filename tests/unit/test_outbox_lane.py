"""A lane of the outbox: whatever was committed is sent, in its order, from memory or from the table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
from aemos_core import outbox_lane
from aemos_core.errors import unavailable
from aemos_core.outbox import Row
from aemos_core.outbox_lane import A_BACKLOG, MANY_IN_BATCH, MOST_IN_BATCH, MOST_IN_MEMORY, Lane, Lost
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import RedisError

OWN, OTHER, OLDER = "own", "other", "older"
WITHIN_S = 10.0
HEAVY = MOST_IN_MEMORY // 4
"""Four such rows fill the memory, and each is a batch of its own."""


def row(seq: int, relay: str = OWN, weight: int = 1) -> Row:
    return Row("job", 0, b"%d" % seq, weight, relay, seq)


class Table:
    """What was committed and is not settled; its first reads fail when it is told so."""

    def __init__(self, failures: int = 0) -> None:
        self.rows: dict[tuple[str, int], Row] = {}
        self._failures = failures

    def add(self, *rows: Row) -> None:
        self.rows.update({(row.relay, row.seq): row for row in rows})

    async def read(self, relay: str, after: int, limit: int) -> list[Row]:
        await asyncio.sleep(0)
        if self._failures:
            self._failures -= 1
            raise unavailable("the database did not answer")
        return [self.rows[key] for key in sorted(self.rows) if key[0] == relay and key[1] > after][:limit]

    def settle(self, rows: Sequence[Row], keep_ms: int) -> None:
        if not keep_ms:
            for row in rows:
                self.rows.pop((row.relay, row.seq), None)


class FakeSender:
    """Answers with the errors it is given, then takes everything; waits for the gate first."""

    spacing = 0.0

    def __init__(self, *errors: Exception, keep_ms: int = 0) -> None:
        self.keep_ms = keep_ms
        self.batches: list[list[int]] = []
        self.most_under_way = self._under_way = 0
        self.gate = asyncio.Event()
        self._errors = list(errors)

    async def send(self, partition: int, rows: Sequence[Row]) -> None:
        self._under_way += 1
        self.most_under_way = max(self.most_under_way, self._under_way)
        self.batches.append([row.seq for row in rows])
        await self.gate.wait()
        self._under_way -= 1
        if self._errors:
            raise self._errors.pop(0)

    async def lost_everything(self) -> bool:
        return False

    @property
    def sent(self) -> list[int]:
        return [seq for batch in self.batches for seq in batch]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until_empty(table: Table) -> None:
    async with asyncio.timeout(WITHIN_S):
        while table.rows:  # noqa: ASYNC110  no event says so
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits before the next attempt."""
    monkeypatch.setattr(outbox_lane, "_RETRY_SECONDS", (0.0,))


def lane_of(table: Table, sender: FakeSender, may_send: asyncio.Event | None = None) -> Lane:
    if may_send is None:
        may_send = asyncio.Event()
        may_send.set()
    return Lane(OWN, sender, 0, table.read, table.settle, may_send)


def commit(table: Table, lane: Lane, *rows: Row) -> None:
    table.add(*rows)
    for one in rows:
        lane.committed(one)


@given(
    st.permutations(range(1, 25)),
    st.lists(st.sampled_from([1, 400, HEAVY]), min_size=24, max_size=24),
    st.integers(1, 8),
    st.integers(0, 8),
)
def test_all_that_was_committed_is_sent_and_settled(
    order: list[int], weights: list[int], burst: int, opened_after: int
) -> None:
    """Whatever the order of the commits, and whether it fits in memory; never more is under way than allowed."""

    async def scenario() -> None:
        table, sender = Table(), FakeSender()
        lane = lane_of(table, sender)
        for count, seq in enumerate(order):
            commit(table, lane, row(seq, weight=weights[seq - 1]))
            if count == opened_after:
                sender.gate.set()
            if count % burst == 0:
                await turns()
        await until_empty(table)
        assert set(sender.sent) == set(order)
        assert sender.most_under_way == 1
        lane.close()

    asyncio.run(scenario())


async def test_what_was_adopted_goes_before_what_is_committed_meanwhile() -> None:
    """A device's reading from before a crash is judged before the one after, also while the former is still read."""
    table, sender = Table(failures=1), FakeSender()
    table.add(*(row(seq, OLDER) for seq in range(1, 11)), *(row(seq, OTHER) for seq in range(11, 251)))
    lane = lane_of(table, sender)
    sender.gate.set()
    lane.catch_up(OTHER, 0)
    lane.catch_up(OLDER, 0)
    for seq in range(1_001, 1_101):
        commit(table, lane, row(seq))
        await turns(1)
    await until_empty(table)
    assert sender.sent == [*range(1, 251), *range(1_001, 1_101)]
    lane.close()


async def test_rows_from_memory_and_from_the_table_keep_their_order() -> None:
    """What did not fit in memory comes before what was committed after it, and each row goes once."""
    table, sender = Table(), FakeSender()
    lane = lane_of(table, sender)
    for seq in range(1, 151):
        commit(table, lane, row(seq, weight=HEAVY))
        await turns(1)
    assert sender.batches == [[1]]
    sender.gate.set()
    for seq in range(151, 301):
        commit(table, lane, row(seq, weight=HEAVY))
        await turns(1)
    await until_empty(table)
    assert sender.sent == list(range(1, 301))
    lane.close()


@pytest.mark.parametrize("error", [Lost(), RedisError(), ConnectionResetError()])
async def test_what_was_lost_is_sent_again(error: Exception) -> None:
    """The same rows, before those behind them, until they are settled."""
    table, sender = Table(), FakeSender(error, error, error)
    sender.gate.set()
    lane = lane_of(table, sender)
    commit(table, lane, row(1), row(2))
    await turns()
    commit(table, lane, row(3))
    await until_empty(table)
    assert sender.batches == [[1, 2]] * 4 + [[3]]
    lane.close()


async def test_what_another_relay_left_is_sent_too() -> None:
    """All of it, page by page, though the table cannot be read at first and own rows come between."""
    table, sender = Table(failures=3), FakeSender()
    sender.gate.set()
    lane = lane_of(table, sender)
    table.add(*(row(seq, OTHER) for seq in range(1, 251)))
    lane.catch_up(OTHER, 0)
    commit(table, lane, *(row(seq) for seq in range(1001, 1011)))
    await until_empty(table)
    assert sorted(sender.sent) == [*range(1, 251), *range(1001, 1011)]
    assert [seq for seq in sender.sent if seq < 1000] == list(range(1, 251))
    lane.close()


async def test_what_another_relay_left_goes_first() -> None:
    """Nothing is sent before it is known who is dead; then what the dead left, then what was committed meanwhile."""
    table, sender, may_send = Table(), FakeSender(), asyncio.Event()
    sender.gate.set()
    lane = lane_of(table, sender, may_send)
    commit(table, lane, *(row(seq) for seq in range(1001, 1011)))
    await turns()
    assert sender.sent == []
    table.add(*(row(seq, OTHER) for seq in range(1, 251)))
    lane.catch_up(OTHER, 0)
    may_send.set()
    await until_empty(table)
    assert sender.sent == [*range(1, 251), *range(1001, 1011)]
    lane.close()


@pytest.mark.parametrize(("keep_ms", "times"), [(600_000, 2), (0, 1)])
async def test_what_is_kept_can_be_sent_again(keep_ms: int, times: int) -> None:
    """Jobs are answered for by their receipts; announcements are read from the table once more."""
    table, sender = Table(), FakeSender(keep_ms=keep_ms)
    sender.gate.set()
    lane = lane_of(table, sender)
    commit(table, lane, row(1), row(2))
    await lane.drain()
    lane.send_again([OWN])
    await turns(20)
    await lane.drain()
    assert sender.sent == [1, 2] * times
    lane.close()


async def test_closing_leaves_in_the_table_what_is_not_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draining has an end though a sender never answers, and then nothing more is sent."""
    monkeypatch.setattr(outbox_lane, "_DRAIN_SECONDS", 0.0)
    table, sender = Table(), FakeSender()
    lane = lane_of(table, sender)
    commit(table, lane, row(1))
    await turns()
    commit(table, lane, row(2))
    await lane.drain()
    lane.close()
    sender.gate.set()
    await turns()
    assert sender.sent == [1]
    assert len(table.rows) == 2


async def test_what_follows_many_waits_unless_it_is_a_backlog() -> None:
    """So under load there are fewer batches and larger ones, but nothing is late that could go."""
    table, sender = Table(), FakeSender()
    sender.spacing = 3600.0
    lane = lane_of(table, sender)
    sender.gate.set()

    commit(table, lane, row(1, weight=MANY_IN_BATCH - 1))
    await until_empty(table)
    commit(table, lane, row(2, weight=MOST_IN_BATCH), *(row(seq, weight=A_BACKLOG) for seq in (3, 4)))
    await until_empty(table)  # behind each there was a backlog, but for the last one
    assert sender.batches == [[1], [2], [3, 4]]

    commit(table, lane, row(5))
    await turns(20)
    assert sender.sent == [1, 2, 3, 4]
    lane.close()


async def test_what_waits_leaves_when_its_time_has_come() -> None:
    """As one batch."""
    table, sender = Table(), FakeSender()
    sender.spacing = 0.2
    lane = lane_of(table, sender)
    sender.gate.set()
    began = time.monotonic()
    for seq in range(1, 4):
        commit(table, lane, row(seq, weight=MANY_IN_BATCH))
        await turns()
    await until_empty(table)
    assert sender.batches == [[1], [2, 3]]
    assert time.monotonic() - began >= 0.2
    lane.close()
