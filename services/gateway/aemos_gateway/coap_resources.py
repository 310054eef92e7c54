"""The resources that aiocoap serves: readings off their usual spelling, notifications, discovery."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from zlib import crc32

from aemos_core.errors import AemosError, Kind, internal, not_found, unauthenticated
from aiocoap import GET, POST, Message
from aiocoap.numbers.constants import Reliable
from aiocoap.pipe import Pipe
from aiocoap.resource import WKCResource
from aiocoap.util.linkformat import Link, LinkFormat

from aemos_gateway import coap_answers
from aemos_gateway.coap_answers import JSON, LINK_FORMAT, MOST_PAYLOAD, CoapError
from aemos_gateway.coap_blocks import Block, Blocks
from aemos_gateway.coap_observers import REFRESH_SECONDS, Observers
from aemos_gateway.coap_transport import EdgeMessages, as_message
from aemos_gateway.coap_uploads import Uploads
from aemos_gateway.device_auth import Device, DeviceAuth
from aemos_gateway.presence import Presence
from aemos_gateway.token_holders import TokenHolders

log = logging.getLogger("aemos.gateway")

READINGS = ("api", "v1", "datastreams", "token")
DISCOVERY = (".well-known", "core")
_CONTINUE = 95
_PATCHES = 7
_ACCEPTED_FORMATS = (None, 0, JSON)
_GRACE_SECONDS = 60

Serve = Callable[[Pipe], Awaitable[None]]


class Site:
    """What a context serves: it asks for `render_to_pipe` only. Every failure becomes an answer here."""

    def __init__(
        self, auth: DeviceAuth, holders: TokenHolders, uploads: Uploads, observers: Observers, presence: Presence
    ) -> None:
        self._auth = auth
        self._holders = holders
        self._presence = presence
        self._uploads = uploads
        self._observers = observers
        self._blocks = Blocks()
        self._discovery = WKCResource(_links)
        self.messages: EdgeMessages

    async def render_to_pipe(self, pipe: Pipe) -> None:
        """Answers the request; ends when its last response is sent, or is cancelled when nobody waits for it."""
        try:
            await self._route(pipe.request)(pipe)
        except AemosError as error:
            _respond(pipe, as_message(coap_answers.refused(error)))
        except Exception as error:
            log.error("a CoAP request failed: %s", type(error).__name__, exc_info=error)
            _respond(pipe, as_message(coap_answers.refused(internal())))

    def _route(self, request: Message) -> Serve:
        method, serve = self._resource(request.opt.uri_path)
        if serve is None and request.code <= _PATCHES:
            raise not_found("resource")
        if serve is None or request.code != method:
            raise CoapError("4.05", "method_not_allowed", "the resource has no such method")
        if request.opt.accept not in (None, LINK_FORMAT if serve == self._discover else JSON):
            raise CoapError("4.06", "not_acceptable", "the resource has no such representation")
        return serve

    def _resource(self, path: tuple[str, ...]) -> tuple[int, Serve | None]:
        if path == READINGS:
            return POST, self._upload
        if path == DISCOVERY:
            return GET, self._discover
        if len(path) == 5 and path[:3] == ("api", "v1", "devices") and path[4] == "notifications":
            return GET, self._notifications
        return 0, None

    async def _discover(self, pipe: Pipe) -> None:
        _respond(pipe, await self._discovery.render(pipe.request))

    async def _upload(self, pipe: Pipe) -> None:
        request = pipe.request
        token = _token(request)
        device = await self._auth.resolve(token)
        try:
            message = await self._taken(request, token)
        except AemosError as error:
            self._uploads.refused(device, request.payload, error)
            raise
        message.opt.block1 = request.opt.block1
        _respond(pipe, message)

    async def _taken(self, request: Message, token: bytes) -> Message:
        if request.opt.content_format not in _ACCEPTED_FORMATS:
            raise CoapError("4.15", "unsupported_content_format", "a reading is JSON")
        body = request.payload if request.opt.block1 is None else self._blocks.add(*_block(request, token))
        if body is None:
            return Message(code=_CONTINUE)
        return as_message(await self._uploads.write(token, body, request.remote.sockaddr, request.mid))

    async def _notifications(self, pipe: Pipe) -> None:
        request = pipe.request
        if request.opt.observe == 0:
            await self._observe(pipe)
            return
        device = await self._owner(request)
        _respond(pipe, as_message(coap_answers.content(self._observers.newest(device.device_uuid), 0)))

    async def _observe(self, pipe: Pipe) -> None:
        device, remote, token = await self._owner(pipe.request), pipe.request.remote, _token(pipe.request)
        with (
            self._observers.registered(device.device_uuid, remote.hostinfo) as inbox,
            self._holders.holding(token, partial(inbox.put, unauthenticated())),
            self._presence.connected(device.device_id),
        ):
            payload = self._observers.newest(device.device_uuid)
            self._notify(pipe, payload)
            while True:
                heard = await inbox.next()
                await self.messages.ready(remote)
                await self._still_owner(pipe.request)
                payload = heard or payload
                self._notify(pipe, payload)

    def _notify(self, pipe: Pipe, payload: bytes) -> None:
        """Confirmable, even if the request was not: that is how a client that died is found out (RFC 7641, 4.5)."""
        message = as_message(coap_answers.content(payload, REFRESH_SECONDS + _GRACE_SECONDS))
        message.opt.observe = self._observers.next_number()
        message.transport_tuning = Reliable()
        _respond(pipe, message, is_last=False)

    async def _owner(self, request: Message) -> Device:
        """The device in the path, which must be the token's."""
        device = await self._auth.resolve(_token(request))
        if device.device_uuid != request.opt.uri_path[3]:
            raise not_found("device")
        return device

    async def _still_owner(self, request: Message) -> None:
        """A revoked token ends the observation; ingest being away does not."""
        try:
            await self._owner(request)
        except AemosError as error:
            if error.kind is not Kind.UNAVAILABLE:
                raise


def _links() -> LinkFormat:
    return LinkFormat([Link("/" + "/".join(READINGS), ct=str(JSON), rt="aemos.reading")])


def _token(request: Message) -> bytes:
    for query in request.opt.uri_query:
        name, _, value = query.partition("=")
        if name == "token":
            return str(value).encode()
    raise unauthenticated()


def _block(request: Message, token: bytes) -> tuple[Any, Block]:
    """The transfer that the block belongs to: same sender, token and Request-Tag (RFC 9175, 3)."""
    number, more, exponent = request.opt.block1
    key = (request.remote.blockwise_key, token, request.opt.request_tag)
    return key, Block(number, more, exponent, request.payload, request.opt.size1)


def _respond(pipe: Pipe, message: Message, *, is_last: bool = True) -> None:
    request = pipe.request
    message.opt.no_response = request.opt.no_response
    pipe.add_response(_sliced(message, request), is_last=is_last)


def _sliced(message: Message, request: Message) -> Message:
    """The block that the request asks for; nothing of ours needs more than one of the largest (RFC 7959, 2.4)."""
    block = request.opt.block2
    if block is None or not message.code.is_successful() or not message.payload:
        return message
    size = min(block.size, MOST_PAYLOAD)
    start, end = block.block_number * size, (block.block_number + 1) * size
    if start >= len(message.payload):
        raise CoapError("4.00", "malformed", "there is no such block")
    message.opt.etag = crc32(message.payload).to_bytes(4)
    message.opt.block2 = (block.block_number, end < len(message.payload), min(block.size_exponent, 6))
    message.payload = message.payload[start:end]
    return message
