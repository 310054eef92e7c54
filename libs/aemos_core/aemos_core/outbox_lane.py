"""One lane of the outbox: the rows of one kind and partition, sent in order, one batch at a time.

So order holds whatever fails: a batch that has to go again goes before the next one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from math import inf
from typing import TYPE_CHECKING, Protocol

from redis.exceptions import RedisError

from aemos_core.batching import Batcher
from aemos_core.errors import AemosError

if TYPE_CHECKING:
    from aemos_core.outbox import Row

log = logging.getLogger("aemos.outbox")

MOST_IN_BATCH = 1_000
MOST_IN_MEMORY = 20_000
MANY_IN_BATCH = 100
A_BACKLOG = MOST_IN_BATCH // 2
_PAGE = 100
_RETRY_SECONDS = (0.05, 0.2, 0.5, 1.0)
_DRAIN_SECONDS = 2.0


class Lost(Exception):
    """What was sent is gone without having been worked on, or nobody can tell: send it again."""


class Sender(Protocol):
    """Sends batches of one kind."""

    keep_ms: int
    """How long a row stays after it is settled, to be sent again when Redis loses it."""
    spacing: float
    """Seconds from the beginning of a batch of many to that of the next, when a batch costs much in itself: under load
    they are fewer and larger. Under light load nothing waits, nor does a backlog."""

    async def send(self, partition: int, rows: Sequence[Row]) -> None:
        """Returns when the rows are settled. Raises Lost or a RedisError to be called again with the same rows."""

    async def lost_everything(self) -> bool:
        """Whether Redis was flushed, restarted or replaced since the last time it was asked."""


Read = Callable[[str, int, int], Awaitable[list["Row"]]]
Settle = Callable[[Sequence["Row"], int], None]


class Lane:
    """Rows go from memory while they fit in it. What does not fit is read back from the table when there is room.

    `_behind` says for each relay (this process' own, and adopted ones) up to which row the table has been read; a relay
    that is not in it has nothing in the table that is not in memory too.
    """

    def __init__(
        self, relay: str, sender: Sender, partition: int, read: Read, settle: Settle, may_send: asyncio.Event
    ) -> None:
        self._own = relay
        self._sender = sender
        self._partition = partition
        self._read = read
        self._settle = settle
        self._may_send = may_send
        self._batcher: Batcher[Row, None] = Batcher(
            self._send,
            max_batch=MOST_IN_BATCH,
            max_waiting=MOST_IN_MEMORY,
            weight=lambda row: row.weight,
        )
        self._behind: dict[str, int] = {}
        self._left: float = inf
        """The lowest row of this process that was left in the table since a page of it was last read."""
        self._room = asyncio.Event()
        self._loading: asyncio.Task[None] | None = None

    def committed(self, row: Row) -> None:
        """Takes a row of this process, or leaves it in the table while that has older ones, adopted ones too."""
        if not self._behind and self._may_send.is_set() and self._batcher.has_room():
            self._put(row)
            return
        position = self._behind.get(self._own)
        if position is None or row.seq <= position:
            # Its turn to be read has passed: read from there again. What is sent twice has one effect.
            self._behind[self._own] = row.seq - 1
        self._left = min(self._left, row.seq)
        self._load()

    def catch_up(self, relay: str, after: int) -> None:
        """Sends what another relay left in the table behind the row `after`."""
        self._behind[relay] = min(after, self._behind.get(relay, after))
        self._load()

    def send_again(self, relays: Iterable[str]) -> None:
        """Sends everything that the table still has."""
        if self._sender.keep_ms:
            self._behind.update(dict.fromkeys(relays, 0))
            self._load()

    async def drain(self) -> None:
        """Waits a little for what is under way; the rest stays in the table."""
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._batcher.drain()
        except TimeoutError:
            log.info("rows stay in the outbox")

    def close(self) -> None:
        """Stops sending."""
        if self._loading is not None:
            self._loading.cancel()
        self._batcher.cancel()

    def _put(self, row: Row) -> None:
        self._batcher.put(row, lambda _: None)

    def _load(self) -> None:
        if self._loading is None or self._loading.done():
            self._loading = asyncio.get_running_loop().create_task(self._load_all())

    async def _load_all(self) -> None:
        await self._may_send.wait()
        while self._behind:
            relay = min(self._behind.keys() - {self._own}, default=self._own)  # what is older first
            try:
                await self._load_page(relay)
            except AemosError as error:
                log.warning("the outbox cannot be read: %s", error.detail)
                await asyncio.sleep(_RETRY_SECONDS[-1])

    async def _load_page(self, relay: str) -> None:
        position, self._left = self._behind[relay], inf
        rows = await self._read(relay, position, _PAGE)
        for row in rows:
            while not self._batcher.has_room():
                self._room.clear()
                await self._room.wait()
            if self._behind[relay] < position or (relay == self._own and self._left < row.seq):
                return  # an older row was committed meanwhile
            self._put(row)
            position = self._behind[relay] = row.seq
        is_read = relay != self._own or self._left == inf
        if not rows and is_read and self._behind[relay] == position:
            del self._behind[relay]

    async def _send(self, rows: list[Row]) -> list[None]:
        began, attempt = time.monotonic(), 0
        while True:
            try:
                await self._sender.send(self._partition, rows)
                break
            except Lost:
                attempt = 0
            except (RedisError, OSError) as error:
                if attempt == 0:
                    log.warning("the outbox waits for redis: %s", type(error).__name__)
                await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
                attempt += 1
        self._settle(rows, self._sender.keep_ms)
        self._room.set()
        if self._batcher.waiting < A_BACKLOG and sum(row.weight for row in rows) >= MANY_IN_BATCH:
            await asyncio.sleep(began + self._sender.spacing - time.monotonic())
        return [None] * len(rows)
