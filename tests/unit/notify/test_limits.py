"""What bounds a client: its allowance of messages and the queue of what it has not read."""

import asyncio

import pytest
from aemos_notify.websocket import QUEUED_PACKETS, Allowance, OutQueue
from hypothesis import given
from hypothesis import strategies as st


def test_allowance_is_a_burst_and_a_rate() -> None:
    """A rested client may send a burst; then its rate counts, and rest never saves more than a burst."""
    allowance = Allowance(10, 5, now=0)
    assert [allowance.take(0) for _ in range(6)] == [True] * 5 + [False]
    assert allowance.take(0.1)
    assert not allowance.take(0.1)
    assert [allowance.take(1_000) for _ in range(6)] == [True] * 5 + [False]


@given(st.lists(st.floats(0, 10), max_size=200))
def test_allowance_is_never_exceeded(pauses: list[float]) -> None:
    """In any stretch of time at most burst + rate x seconds messages pass."""
    allowance, now, passed = Allowance(10, 5, now=0), 0.0, 0
    for pause in pauses:
        now += pause
        passed += allowance.take(now)
        assert passed <= 5 + 10 * now + 1e-6


async def test_full_queue_says_so_and_takes_the_end() -> None:
    """What does not fit is dropped whole and reported; the word for the end always fits; nobody waits."""
    queue, full = OutQueue(), []
    queue.on_full = lambda: full.append(queue.qsize())
    queue.offer(list(range(QUEUED_PACKETS - 1)))
    queue.offer(["two", "more"])
    assert full == [QUEUED_PACKETS - 1]
    async with asyncio.timeout(1):
        await queue.put("last")
        await queue.put("too many")
        await queue.put(None)
    assert full == [QUEUED_PACKETS - 1, QUEUED_PACKETS]
    assert queue.qsize() == QUEUED_PACKETS + 1


async def test_queue_may_be_passed_only_while_its_reader_waits() -> None:
    """Not before the reader waits, not with something in the queue, not while the reader has it in its hands."""
    queue = OutQueue()
    seen = [queue.may_be_passed]
    reader = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    seen.append(queue.may_be_passed)
    queue.offer(["x"])
    seen.append(queue.may_be_passed)
    await reader
    seen.append(queue.may_be_passed)
    reader = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert [*seen, queue.may_be_passed] == [False, True, False, False, False]
