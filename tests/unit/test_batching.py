"""Batches: what is under way decides when the next one leaves, and every item is answered once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import pytest
from aemos_core.batching import Batcher
from aemos_core.errors import AemosError, Kind
from hypothesis import given
from hypothesis import strategies as st


class Sink:
    """Takes batches; each waits until it is let go, and answers its items doubled, or fails."""

    def __init__(self, failing: frozenset[int] = frozenset(), opened: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.under_way = self.most_under_way = 0
        self._failing = failing
        self._gate = asyncio.Semaphore(10_000 if opened else 0)

    def let_go(self, batches: int = 1) -> None:
        for _ in range(batches):
            self._gate.release()

    async def send(self, items: list[int]) -> Sequence[int]:
        self.batches.append(items)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self._gate.acquire()
        finally:
            self.under_way -= 1
        if self._failing.intersection(items):
            raise OSError(items)
        return [2 * item for item in items]


class Answers:
    """What `done` was called with, by item; a second call for one item fails the test."""

    def __init__(self) -> None:
        self.got: dict[int, int | BaseException] = {}

    def put(self, batcher: Batcher[int, int], item: int) -> None:
        batcher.put(item, lambda result: self._note(item, result))

    def _note(self, item: int, result: int | BaseException) -> None:
        assert item not in self.got
        self.got[item] = result


async def turns(count: int = 5) -> None:
    """Lets what is ready happen."""
    for _ in range(count):
        await asyncio.sleep(0)


WEIGHTS = st.lists(st.integers(1, 12), min_size=1, max_size=60)


@given(WEIGHTS, st.integers(1, 10), st.integers(1, 3), st.frozensets(st.integers(0, 59)), st.integers(1, 7))
def test_every_item_is_answered_once(
    weights: list[int], max_batch: int, in_flight: int, failing: frozenset[int], burst: int
) -> None:
    """In order, within the bounds of a batch and of what is under way; a failure is its own batch's alone."""

    async def scenario() -> None:
        sink, answers = Sink(failing, opened=True), Answers()
        batcher: Batcher[int, int] = Batcher(
            sink.send, max_batch=max_batch, max_waiting=10_000, in_flight=in_flight, weight=lambda item: weights[item]
        )
        for item in range(len(weights)):
            answers.put(batcher, item)
            if item % burst == 0:
                await turns(item % 3)
        await batcher.drain()
        assert batcher.idle
        assert [item for batch in sink.batches for item in batch] == list(range(len(weights)))
        assert sink.most_under_way <= in_flight
        for batch in sink.batches:
            assert len(batch) == 1 or sum(weights[item] for item in batch) <= max_batch
            failed = bool(failing.intersection(batch))
            for item in batch:
                assert isinstance(answers.got[item], OSError) if failed else answers.got[item] == 2 * item

    asyncio.run(scenario())


async def test_the_first_leaves_at_once_and_the_rest_together() -> None:
    """Nobody waits for a timer: while a batch is under way the next one gathers."""
    sink, answers = Sink(), Answers()
    batcher = Batcher(sink.send, max_batch=3, max_waiting=100)
    answers.put(batcher, 0)
    await turns()
    for item in range(1, 6):
        answers.put(batcher, item)
    await turns()
    assert sink.batches == [[0]]
    sink.let_go()
    await turns()
    assert (sink.batches, answers.got) == ([[0], [1, 2, 3]], {0: 0})
    sink.let_go(2)
    await batcher.drain()
    assert sink.batches == [[0], [1, 2, 3], [4, 5]]


async def test_what_one_turn_brought_leaves_together() -> None:
    """Also when nothing is under way."""
    sink, answers = Sink(opened=True), Answers()
    batcher = Batcher(sink.send, max_batch=100, max_waiting=100)
    for item in range(10):
        answers.put(batcher, item)
    await batcher.drain()
    assert sink.batches == [list(range(10))]


async def test_who_sends_again_when_answered_is_in_the_next_batch() -> None:
    """With who waited meanwhile: otherwise two groups would take turns, in batches of half the size."""
    left, right = socket.socketpair()
    with left, right:
        sink = Sink()
        batcher = Batcher(sink.send, max_batch=100, max_waiting=100)
        batcher.put(0, lambda _: left.send(b"again"))
        await turns()
        batcher.put(1, lambda _: None)
        asyncio.get_running_loop().add_reader(right, lambda: batcher.put(right.recv(5)[0], lambda _: None))
        sink.let_go(2)
        async with asyncio.timeout(10):
            await batcher.drain()
        asyncio.get_running_loop().remove_reader(right)
    assert sink.batches == [[0], [1, ord("a")]]


async def test_who_fails_at_a_result_fails_alone() -> None:
    """The others of the batch are told, and the next batch leaves."""
    sink, answers = Sink(opened=True), Answers()
    batcher = Batcher(sink.send, max_batch=100, max_waiting=100)
    batcher.put(0, {}.__getitem__)
    answers.put(batcher, 1)
    await turns()
    answers.put(batcher, 2)
    async with asyncio.timeout(10):
        await batcher.drain()
    assert (sink.batches, answers.got) == ([[0, 1], [2]], {1: 2, 2: 4})


async def test_a_full_queue_refuses_and_says_so() -> None:
    """By weight; what was refused is not sent, and there is room again when a batch left."""
    sink, answers = Sink(), Answers()
    batcher = Batcher(sink.send, max_batch=5, max_waiting=10, weight=lambda _: 5)
    for item in range(3):
        answers.put(batcher, item)
        await turns()
    assert not batcher.has_room()
    with pytest.raises(AemosError) as refused:
        answers.put(batcher, 99)
    assert (refused.value.kind, refused.value.reason) == (Kind.UNAVAILABLE, "queue_full")
    sink.let_go()
    await turns()
    assert batcher.has_room()
    sink.let_go(10)
    await batcher.drain()
    assert sorted(answers.got) == [0, 1, 2]


async def test_who_waits_gets_the_result_or_the_exception() -> None:
    """And one who stopped waiting takes nothing back, and disturbs nobody."""
    sink = Sink(failing=frozenset([7]))
    batcher = Batcher(sink.send, max_batch=1, max_waiting=10, in_flight=3)
    waiting = [asyncio.create_task(batcher.submit(item)) for item in (5, 6, 7)]
    await turns()
    waiting[1].cancel()
    sink.let_go(3)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert results[0] == 10
    assert isinstance(results[1], asyncio.CancelledError)
    assert isinstance(results[2], OSError)
    assert sink.batches == [[5], [6], [7]]
    assert batcher.idle


@pytest.mark.parametrize("results", [[], [1], [1, 2, 3]])
async def test_a_wrong_number_of_results_answers_everybody_with_an_error(results: list[int]) -> None:
    """Nobody waits for ever because of a mistake in `send`."""

    async def send(_items: list[int]) -> Sequence[int]:
        return results

    answers = Answers()
    batcher = Batcher(send, max_batch=10, max_waiting=10)
    answers.put(batcher, 0)
    answers.put(batcher, 1)
    await batcher.drain()
    assert sorted(answers.got) == [0, 1]
    assert all(isinstance(result, ValueError) for result in answers.got.values())


async def test_cancel_answers_everybody() -> None:
    """What was under way and what waited: each is told, once, and nothing more is sent."""
    sink, answers = Sink(), Answers()
    batcher = Batcher(sink.send, max_batch=2, max_waiting=10)
    for item in range(5):
        answers.put(batcher, item)
    await turns()
    batcher.cancel()
    await turns()
    assert batcher.idle
    assert sink.batches == [[0, 1]]
    assert sorted(answers.got) == [0, 1, 2, 3, 4]
    assert all(isinstance(result, asyncio.CancelledError) for result in answers.got.values())


async def test_what_waited_too_long_is_refused_when_a_batch_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was never sent; what came later goes on."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    sink, answers = Sink(), Answers()
    batcher = Batcher(sink.send, max_batch=1, max_waiting=10, patience=5.0)
    for item, at in enumerate((100.0, 100.0, 104.0)):
        now[0] = at
        answers.put(batcher, item)
        await turns()
    now[0] = 108.0
    sink.let_go()
    await turns()
    late = answers.got.pop(1)
    assert isinstance(late, AemosError)
    assert (late.kind, late.reason) == (Kind.UNAVAILABLE, "queue_full")
    sink.let_go()
    await batcher.drain()
    assert answers.got == {0: 0, 2: 4}
    assert sink.batches == [[0], [2]]
    assert batcher._waiting_weight == 0
