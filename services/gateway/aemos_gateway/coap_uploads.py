"""Readings over CoAP: each is written once, and answered after its commit.

A reading in its usual spelling, one datagram, never becomes an aiocoap message nor a task: that is ten times the
readings a second (design: prototypes.md, B). The bytes of the datagram and where it came from are what tells a
retransmission from a new request, since a device that restarts uses its message ids again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Protocol
from zlib import crc32

from aemos_core.errors import AemosError, internal, unavailable
from aemos_core.times import now_ms

from aemos_gateway import coap_answers, coap_datagram
from aemos_gateway.coap_answers import Answer
from aemos_gateway.coap_recent import Recent
from aemos_gateway.coap_socket import Address, Peer
from aemos_gateway.device_auth import Device, DeviceAuth
from aemos_gateway.readings import Receipt
from aemos_gateway.service import Origin, Uplink

log = logging.getLogger("aemos.gateway")

PROTOCOL = "coap"
MOST_REMEMBERED = 100_000
"""Answers per generation, about 35 MB; at 10,000 readings/s a retransmission is still known for 10 to 20 s."""
REPEATED_SECONDS = 93.0
"""How long a device may repeat a confirmable message (MAX_TRANSMIT_WAIT, RFC 7252, 4.8.2)."""
MOST_RESOLVING = 1_000
"""Datagrams that may wait for ingest to say whose token they carry."""


def _stopping() -> AemosError:
    return unavailable("this server is stopping")


class Port(Protocol):
    """The socket, as uploads need it."""

    def transmit(self, datagram: bytes, peer: Peer) -> None:
        """Sends; never raises."""

    def next_mid(self) -> int:
        """A message id of ours."""

    def send_separately(self, answer: Answer, token: bytes, peer: Peer) -> None:
        """Sends the answer as a confirmable message of its own, until it is acknowledged."""


class _Exchange:
    """A request that waits for its answer."""

    __slots__ = ("acknowledged", "key", "peer", "port", "request")

    def __init__(self, port: Port, key: int, request: bytes, peer: Peer) -> None:
        self.port = port
        self.key = key
        self.request = request
        self.peer = peer
        self.acknowledged = False


class Uploads:
    """Takes readings from datagrams (`take`) and from aiocoap's resource (`write`)."""

    def __init__(self, auth: DeviceAuth, uplink: Uplink) -> None:
        self._auth = auth
        self._uplink = uplink
        self._recent: Recent[int, _Exchange | bytes] = Recent(MOST_REMEMBERED)
        self._resolving: set[asyncio.Task[None]] = set()
        self._pending = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._began_at = time.monotonic()
        self._began_at_ms = now_ms()

    async def drain(self) -> None:
        """Takes no more, and returns when what was taken is answered."""
        self._closed = True
        await self._idle.wait()

    def take(self, port: Port, datagram: bytes, peer: Peer) -> bool:
        """Takes the datagram if it is a reading in its usual spelling; it is answered after the commit."""
        found = coap_datagram.telemetry(datagram)
        if found is None:
            return False
        key = hash((peer.address, datagram))
        before = self._recent.get(key)
        if before is None:
            self._start(_Exchange(port, key, datagram, peer), *found)
        elif coap_datagram.is_confirmable(datagram):
            self._repeated(before, port, datagram, peer)
        return True

    async def write(self, token: bytes, payload: bytes, address: Address, mid: int) -> Answer:
        """As `take`, for a request that was read by aiocoap; raises what refuses it."""
        if self._closed:
            raise _stopping()
        self._began()
        try:
            device = await self._auth.resolve(token)
            origin = self._origin(address, token + payload, mid)
            return coap_answers.stored(await self._uplink.write(device, payload, PROTOCOL, origin))
        finally:
            self._ended()

    def _start(self, exchange: _Exchange, token: bytes, payload: bytes) -> None:
        self._recent.put(exchange.key, exchange)
        self._began()
        if self._closed:
            self._done(exchange, _stopping())
        elif device := self._auth.known(token):
            self._put(exchange, device, payload)
        elif len(self._resolving) >= MOST_RESOLVING:
            self._done(exchange, unavailable("too many tokens are being looked up"))
        else:
            task = asyncio.get_running_loop().create_task(self._resolve(exchange, token, payload))
            self._resolving.add(task)
            task.add_done_callback(self._resolving.discard)

    async def _resolve(self, exchange: _Exchange, token: bytes, payload: bytes) -> None:
        try:
            device = await self._auth.resolve(token)
        except Exception as error:
            self._done(exchange, error)
        else:
            self._put(exchange, device, payload)

    def _put(self, exchange: _Exchange, device: Device, payload: bytes) -> None:
        try:
            request = exchange.request
            origin = self._origin(exchange.peer.address, request, int.from_bytes(request[2:4]))
            self._uplink.put(device, payload, PROTOCOL, partial(self._done, exchange), origin)
        except Exception as error:
            self._done(exchange, error)

    def _origin(self, address: Address, content: bytes, mid: int) -> Origin:
        """This process remembers what it took; what the one before it took is looked for while devices repeat it."""
        key = crc32(content, crc32(repr(address[:2]).encode())) << 16 | mid
        return Origin(key, time.monotonic() - self._began_at < REPEATED_SECONDS, self._began_at_ms)

    def _repeated(self, before: _Exchange | bytes, port: Port, datagram: bytes, peer: Peer) -> None:
        """The same answer again; an empty acknowledgement while there is none, and a separate response then."""
        if isinstance(before, _Exchange):
            before.acknowledged = True
            before = coap_datagram.empty_ack(datagram)
        port.transmit(before, peer)

    def refused(self, device: Device, payload: bytes, error: AemosError) -> None:
        """A message of a device will not be stored; it is answered elsewhere."""
        self._uplink.rejections.record(device, PROTOCOL, payload, error)

    def _note(self, exchange: _Exchange, error: AemosError) -> None:
        """What is needed only now is read from the datagram again; one without a valid token is nobody's."""
        if found := coap_datagram.telemetry(exchange.request):
            token, payload = found
            if device := self._auth.known(token):
                self.refused(device, payload, error)

    def _done(self, exchange: _Exchange, result: Receipt | BaseException) -> None:
        self._ended()
        if isinstance(result, AemosError):
            self._note(exchange, result)
        try:
            self._answer(exchange, _answer_to(result))
        except Exception as error:  # it would reach the readings beside this one in the batch
            log.error("an answer over CoAP was not sent: %s", type(error).__name__, exc_info=error)

    def _answer(self, exchange: _Exchange, answer: Answer) -> None:
        port, request = exchange.port, exchange.request
        if exchange.acknowledged:
            self._recent.put(exchange.key, coap_datagram.empty_ack(request))
            port.send_separately(answer, request[4 : 4 + (request[0] & 15)], exchange.peer)
            return
        datagram = coap_datagram.response(request, port.next_mid(), answer)
        self._recent.put(exchange.key, datagram)
        port.transmit(datagram, exchange.peer)

    def _began(self) -> None:
        self._pending += 1
        self._idle.clear()

    def _ended(self) -> None:
        self._pending -= 1
        if not self._pending:
            self._idle.set()


def _answer_to(result: Receipt | BaseException) -> Answer:
    if isinstance(result, Receipt):
        return coap_answers.stored(result)
    if not isinstance(result, AemosError):
        log.error("a reading over CoAP failed: %s", type(result).__name__, exc_info=result)
        result = internal()
    return coap_answers.refused(result)
