"""Readings over CoAP: each is written once, and answered after its commit."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from zlib import crc32

from aemos_core.errors import AemosError, unavailable
from aemos_core.times import now_ms
from aiocoap import Message

from aemos_gateway import coap_answers
from aemos_gateway.coap_answers import JSON, Answer, CoapError
from aemos_gateway.coap_blocks import Blocks
from aemos_gateway.coap_exchanges import Exchange, Exchanges
from aemos_gateway.device_auth import Device, DeviceAuth
from aemos_gateway.readings import Receipt
from aemos_gateway.service import Origin, Uplink

PROTOCOL = "coap"
REPEATED_SECONDS = 93.0
"""How long a device may repeat a confirmable message (MAX_TRANSMIT_WAIT, RFC 7252, 4.8.2)."""
_REPEATED_MS = int(REPEATED_SECONDS * 1000)
MOST_RESOLVING = 1_000
"""Datagrams that may wait for ingest to say whose token they carry."""
_ACCEPTED_FORMATS = (None, 0, JSON)


class Uploads:
    """Takes readings from datagrams (`take`) and from requests that aiocoap read (`post`), until `drain`."""

    def __init__(self, auth: DeviceAuth, uplink: Uplink, exchanges: Exchanges) -> None:
        self._auth = auth
        self._uplink = uplink
        self._exchanges = exchanges
        self._blocks = Blocks()
        self._resolving = 0
        self._pending = 0
        self._idle = asyncio.Event()
        self._closed = False
        self._began_at = time.monotonic()
        self._began_at_ms = now_ms()

    async def drain(self) -> None:
        """Takes no more, and returns when what was taken is answered."""
        self._closed = True
        if self._pending:
            await self._idle.wait()

    def take(self, exchange: Exchange, token: bytes, payload: bytes) -> None:
        """Answers the exchange after the commit; only a token that is not in memory costs a task."""
        self._pending += 1
        if self._closed:
            self._done(exchange, None, payload, _stopping())
        elif device := self._auth.known(token):
            self._put(exchange, device, payload)
        elif self._resolving >= MOST_RESOLVING:
            self._done(exchange, None, payload, unavailable("too many tokens are being looked up"))
        else:
            self._resolving += 1
            self._exchanges.start(self._resolve(exchange, token, payload))

    async def post(self, exchange: Exchange, request: Message, token: bytes) -> Answer:
        """As `take`, of a body that may come in blocks: those of one have the same sender, token and Request-Tag."""
        device = await self._auth.resolve(token)
        options, block, body = request.opt, request.opt.block1, request.payload
        try:
            if options.block2 is not None and options.block2.block_number:
                raise CoapError("4.00", "malformed", "the answer to a reading has one block")
            if options.content_format not in _ACCEPTED_FORMATS:
                raise CoapError("4.15", "unsupported_content_format", "a reading is JSON")
            if block is not None:
                key = (exchange.peer.address, token, options.request_tag)
                body = self._blocks.add(key, block, request.payload, options.size1 or 0)
            if body is None:
                return coap_answers.with_block1(coap_answers.CONTINUE, block)
            answer = coap_answers.stored(await self._write(exchange, device, body))
            return coap_answers.with_block1(coap_answers.within(answer, options.block2), block)
        except AemosError as error:
            self._uplink.rejections.record(device, PROTOCOL, request.payload, error)
            raise

    async def _write(self, exchange: Exchange, device: Device, payload: bytes) -> Receipt:
        if self._closed:
            raise _stopping()
        self._pending += 1
        try:
            return await self._uplink.write(device, payload, PROTOCOL, self._origin(exchange))
        finally:
            self._ended()

    async def _resolve(self, exchange: Exchange, token: bytes, payload: bytes) -> None:
        try:
            device = await self._auth.resolve(token)
        except Exception as error:
            self._done(exchange, None, payload, error)
        else:
            self._put(exchange, device, payload)
        finally:
            self._resolving -= 1

    def _put(self, exchange: Exchange, device: Device, payload: bytes) -> None:
        try:
            done = partial(self._done, exchange, device, payload)
            self._uplink.put(device, payload, PROTOCOL, done, self._origin(exchange))
        except Exception as error:
            self._done(exchange, device, payload, error)

    def _origin(self, exchange: Exchange) -> Origin:
        """This process remembers what it took; what the one before it took is looked for while devices repeat it."""
        request = exchange.request
        key = crc32(request, crc32(repr(exchange.peer.address[:2]).encode())) << 16 | int.from_bytes(request[2:4])
        maybe_repeated = time.monotonic() - self._began_at < REPEATED_SECONDS
        return Origin(key, maybe_repeated, now_ms() - _REPEATED_MS, self._began_at_ms)

    def _done(self, exchange: Exchange, device: Device | None, payload: bytes, result: Receipt | BaseException) -> None:
        self._ended()
        if device and isinstance(result, AemosError):
            self._uplink.rejections.record(device, PROTOCOL, payload, result)
        answer = coap_answers.stored(result) if isinstance(result, Receipt) else coap_answers.refused(result)
        self._exchanges.answer(exchange, answer)

    def _ended(self) -> None:
        self._pending -= 1
        if self._closed and not self._pending:
            self._idle.set()


def _stopping() -> AemosError:
    return unavailable("this server is stopping")
