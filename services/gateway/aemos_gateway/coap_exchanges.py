"""CoAP's message layer (RFC 7252, 4): each request is taken once, and each answer arrives.

A request is known by its datagram and where it came from, which tells a retransmission from a new request, since a
device that restarts uses its message ids again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any
from weakref import WeakValueDictionary

from aiocoap.numbers.constants import TransportTuning as Tuning

from aemos_gateway import coap_datagram
from aemos_gateway.coap_answers import Answer
from aemos_gateway.coap_recent import Recent
from aemos_gateway.coap_socket import Address, Peer

MOST_REMEMBERED = 100_000
"""Answers per generation, about 35 MB; at 10,000 readings/s a retransmission is still known for 10 to 20 s."""
MOST_TASKS = 20_000
"""When so many requests and answers are under way, no other request is taken that needs a task, and an answer by a
message of its own is sent once only."""
SETTLE_SECONDS = 3.0
"""How long a stop waits for acknowledgements: each answer can be sent a second time."""
_ACKNOWLEDGEMENT, _RESET = 0x20, 0x30


class Exchange:
    """A request that waits for its answer; once it is `acknowledged`, that comes by a message of its own."""

    __slots__ = ("acknowledged", "key", "peer", "request")

    def __init__(self, key: int, request: bytes, peer: Peer) -> None:
        self.key = key
        self.request = request
        self.peer = peer
        self.acknowledged = False


class _Turn(asyncio.Lock):
    """Who may send a client a confirmable message; when it `gave_up` on one, those who wait for it do too."""

    gave_up = False


class Exchanges:
    """The requests that came lately, and what they were or are being answered."""

    def __init__(self, send: Callable[[bytes, Peer], None]) -> None:
        self._send = send
        self._recent: Recent[int, Exchange | bytes] = Recent(MOST_REMEMBERED)
        self._mid = random.getrandbits(16)
        self._turns: WeakValueDictionary[Address, _Turn] = WeakValueDictionary()
        self._unacknowledged: dict[tuple[Address, int], asyncio.Future[bool]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, request: bytes, peer: Peer) -> Exchange | None:
        """A new request. A confirmable one that came before is answered as it was, or acknowledged until it is."""
        key = hash((peer.address, request))
        before = self._recent.get(key)
        if before is None:
            exchange = Exchange(key, request, peer)
            self._recent.put(key, exchange)
            return exchange
        if coap_datagram.is_confirmable(request):
            if isinstance(before, Exchange):
                before.acknowledged = True
                before = coap_datagram.empty_ack(request)
            self._send(before, peer)
        return None

    def answer(self, exchange: Exchange, answer: Answer) -> None:
        """Answers on the acknowledgement, or if that went out before, by a confirmable message of its own.

        So does what else the exchange is answered: a client takes no notice of a second acknowledgement.
        """
        if not exchange.acknowledged:
            datagram = coap_datagram.response(exchange.request, self.next_mid(), answer)
            self._recent.put(exchange.key, datagram)
            exchange.acknowledged = True
            self._send(datagram, exchange.peer)
            return
        self._recent.put(exchange.key, coap_datagram.empty_ack(exchange.request))
        if self.has_room:
            self.start(self._answer_separately(exchange, answer))
        else:
            self._send(coap_datagram.confirmable(exchange.request, self.next_mid(), answer), exchange.peer)

    def withhold(self, exchange: Exchange) -> None:
        """Only acknowledges (RFC 7967, 2.1)."""
        acknowledgement = coap_datagram.empty_ack(exchange.request)
        self._recent.put(exchange.key, acknowledgement)
        if coap_datagram.is_confirmable(exchange.request):
            self._send(acknowledgement, exchange.peer)

    @asynccontextmanager
    async def turn(self, exchange: Exchange) -> AsyncIterator[None]:
        """To be held around `deliver`: one message to a client is unacknowledged at a time (NSTART; RFC 7252, 4.7).

        TimeoutError when the client let one time out meanwhile: a dead one costs 93 s, however much waits for it.
        """
        turn = self._turns.setdefault(exchange.peer.address, _Turn())
        async with turn:
            if turn.gave_up:
                raise TimeoutError
            try:
                yield
            except TimeoutError:
                turn.gave_up = True
                raise

    async def deliver(self, exchange: Exchange, answer: Answer) -> bool:
        """Sends until it is acknowledged; False when it is reset, TimeoutError when nobody answers (RFC 7252, 4.2)."""
        mid = self.next_mid()
        datagram = coap_datagram.confirmable(exchange.request, mid, answer)
        place = exchange.peer.address, mid
        acknowledged: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._unacknowledged[place] = acknowledged
        seconds = Tuning.ACK_TIMEOUT * random.uniform(1, Tuning.ACK_RANDOM_FACTOR)
        try:
            for _ in range(1 + Tuning.MAX_RETRANSMIT):
                self._send(datagram, exchange.peer)
                await asyncio.wait([acknowledged], timeout=seconds)
                if acknowledged.done():
                    return acknowledged.result()
                seconds *= 2
            raise TimeoutError
        finally:
            del self._unacknowledged[place]

    def heard(self, message: bytes, peer: Peer) -> None:
        """Takes an acknowledgement or a reset of what is delivered."""
        kind = message[0] & 0x30
        waiting = self._unacknowledged.get((peer.address, int.from_bytes(message[2:4])))
        if kind in (_ACKNOWLEDGEMENT, _RESET) and waiting is not None and not waiting.done():
            waiting.set_result(kind == _ACKNOWLEDGEMENT)

    def next_mid(self) -> int:
        """A message id of ours."""
        self._mid = self._mid + 1 & 0xFFFF
        return self._mid

    @property
    def has_room(self) -> bool:
        """Whether another task may start."""
        return len(self._tasks) < MOST_TASKS

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Does it in a task that lives no longer than this."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Returns when nothing is under way, or after SETTLE_SECONDS."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                while self._tasks:
                    await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Ends what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _answer_separately(self, exchange: Exchange, answer: Answer) -> None:
        with suppress(TimeoutError):
            async with self.turn(exchange):
                await self.deliver(exchange, answer)
