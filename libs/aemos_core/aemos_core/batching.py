"""Natural batching: what arrives while nothing is under way leaves at once; the rest forms the next batch.

Who was answered often sends again at once. Therefore the next batch leaves only when the loop has looked at its sockets
once more: otherwise two groups of clients would take turns, in batches of half the size.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

from aemos_core.errors import AemosError, Kind

log = logging.getLogger("aemos.batching")

T = TypeVar("T")
R = TypeVar("R")
Done = Callable[[R | BaseException], None]


_Waiting: TypeAlias = tuple[T, Done[R], int, float]
"""An item, who waits for it, its weight, and since when, by the monotonic clock."""


def _one(_: object) -> int:
    return 1


class Batcher(Generic[T, R]):
    """Hands items to `send` in batches, with at most `in_flight` batches under way; nobody waits for a timer.

    `send` gets the items in order and returns one result for each, or raises: then every item of the batch gets the
    exception, as it does when the number of results is another. `max_batch` and `max_waiting` count what `weight` says
    of an item. A full queue refuses with UNAVAILABLE. So is refused, when a batch ends, what has waited for longer than
    `patience` seconds: behind several batches that fail it would wait for each of them.
    """

    def __init__(
        self,
        send: Callable[[list[T]], Awaitable[Sequence[R]]],
        *,
        max_batch: int,
        max_waiting: int,
        in_flight: int = 1,
        weight: Callable[[T], int] = _one,
        patience: float = math.inf,
    ) -> None:
        self._send = send
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._free = in_flight
        self._weight = weight
        self._patience = patience
        self._waiting: deque[_Waiting[T, R]] = deque()
        self._waiting_weight = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._start_scheduled = False

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is under way."""
        return not self._waiting and not self._tasks

    @property
    def waiting(self) -> int:
        """The weight of what waits."""
        return self._waiting_weight

    def has_room(self) -> bool:
        """Whether `put` would take an item now."""
        return self._waiting_weight < self._max_waiting

    def put(self, item: T, done: Done[R]) -> None:
        """Queues an item; `done` is called once, on the loop, with its result or the exception."""
        if self._waiting_weight >= self._max_waiting:
            raise AemosError(Kind.UNAVAILABLE, "too much is waiting", reason="queue_full")
        weight = self._weight(item)
        self._waiting.append((item, done, weight, time.monotonic()))
        self._waiting_weight += weight
        # Not now but at the end of this turn of the loop: what one read from a socket brought leaves together.
        if self._free and not self._start_scheduled:
            self._start_scheduled = True
            asyncio.get_running_loop().call_soon(self._start)

    async def submit(self, item: T) -> R:
        """As `put`, and waits for the result. Being cancelled does not take the item back."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self.put(item, lambda result: resolve(future, result))
        return await future

    async def drain(self) -> None:
        """Waits until nothing is left; callers bound it with a deadline, at which what is under way goes on."""
        while not self.idle:
            if self._tasks:
                await asyncio.wait(self._tasks)
            await asyncio.sleep(0)

    def cancel(self) -> None:
        """Cuts what is under way and drops what waits: both get CancelledError."""
        dropped, self._waiting = self._waiting, deque()
        self._waiting_weight = 0
        for task in self._tasks:
            task.cancel()
        for _, done, _, _ in dropped:
            _tell(done, asyncio.CancelledError())

    def _start(self) -> None:
        self._start_scheduled = False
        self._refuse_late()
        while self._free and self._waiting:
            self._free -= 1
            task = asyncio.get_running_loop().create_task(self._deliver(self._take()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _refuse_late(self) -> None:
        begin = time.monotonic() - self._patience
        while self._waiting and self._waiting[0][3] < begin:
            _, done, weight, _ = self._waiting.popleft()
            self._waiting_weight -= weight
            _tell(done, AemosError(Kind.UNAVAILABLE, "it waited too long", reason="queue_full"))

    def _take(self) -> list[_Waiting[T, R]]:
        batch = [self._waiting.popleft()]
        room = self._max_batch - batch[0][2]
        while self._waiting and self._waiting[0][2] <= room:
            batch.append(self._waiting.popleft())
            room -= batch[-1][2]
        self._waiting_weight -= self._max_batch - room
        return batch

    async def _deliver(self, batch: list[_Waiting[T, R]]) -> None:
        results: Sequence[R | BaseException]
        try:
            results = await self._send([item for item, _, _, _ in batch])
            if len(results) != len(batch):
                raise ValueError(f"{len(results)} results of {len(batch)} items")
        except BaseException as error:
            results = [error] * len(batch)
            if not isinstance(error, Exception):
                raise
        finally:
            self._free += 1
            self._start_scheduled = True
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._start)
            for (_, done, _, _), result in zip(batch, results, strict=True):
                _tell(done, result)


def _tell(done: Done[R], result: R | BaseException) -> None:
    try:
        done(result)
    except Exception:  # it is one's own affair: the others of the batch are told all the same
        log.exception("a result was not delivered")


def resolve(future: asyncio.Future[R], result: R | BaseException) -> None:
    """Hands a result or an exception to whoever waits for it; nobody when it was cancelled meanwhile."""
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
