"""The CoAP edge: readings in by POST, notifications out by GET with Observe.

A reading in its usual spelling, one datagram, becomes neither a message nor a task: that is ten times the readings a
second. Of the rest, aiocoap reads the requests; its message layer takes 3.4 kB for 247 s for each, so ours is our own.
"""

from __future__ import annotations

import asyncio

from aemos_core.errors import AemosError, Kind, not_found, unauthenticated, unavailable
from aemos_core.waiting import wait
from aiocoap import GET, POST, Message

from aemos_gateway import coap_answers, coap_datagram
from aemos_gateway.coap_answers import CONTENT_FORMAT, JSON, LINK_FORMAT, Answer, CoapError
from aemos_gateway.coap_exchanges import Exchange, Exchanges
from aemos_gateway.coap_observers import Notifications, Observers
from aemos_gateway.coap_socket import LONGEST_DATAGRAM, DatagramSocket, Peer, bound
from aemos_gateway.coap_uploads import Uploads
from aemos_gateway.device_auth import DeviceAuth
from aemos_gateway.downlink import Downlink
from aemos_gateway.service import Uplink
from aemos_gateway.token_holders import TokenHolders

READINGS = ("api", "v1", "datastreams", "token")
DISCOVERY = (".well-known", "core")
_LINKS = b'</api/v1/datastreams/token>; ct="50"; rt="aemos.reading"'
_CHECK_SECONDS = 1.0
_PATCHES = 7
"""The highest code of a method that is known (RFC 8132)."""


class CoapEdge:
    """A component: listens on UDP (port 0: a free one) until it is closed; PortInUse. `port` is what it listens on."""

    def __init__(self, host: str, port: int, auth: DeviceAuth, uplink: Uplink, downlink: Downlink) -> None:
        sock = bound(host, port)
        self.port: int = sock.getsockname()[1]
        self._socket = DatagramSocket(sock, self._received)
        self._exchanges = Exchanges(self._socket.send)
        self._holders = TokenHolders(auth)
        self._uploads = Uploads(auth, uplink, self._exchanges)
        self._observers = Observers(downlink)
        self._notifications = Notifications(auth, self._observers, self._holders, uplink.presence, self._exchanges)

    async def run(self, stop: asyncio.Event) -> None:
        """Ends observations whose token was; after `stop` refuses what is new, until what was taken is answered."""
        while not await wait(stop, _CHECK_SECONDS):
            await self._holders.check()
        self._observers.close()
        await self._uploads.drain()
        await self._exchanges.settle()

    async def aclose(self) -> None:
        """No datagram comes or goes any more."""
        await self._exchanges.close()
        self._socket.close()

    def _received(self, datagram: bytes, peer: Peer, cut: bool) -> None:
        """Whatever is wrong with a datagram or with us is answered, if it is a request."""
        try:
            if cut:
                raise AemosError(Kind.TOO_LARGE, f"a datagram has at most {LONGEST_DATAGRAM} bytes: use Block1")
            if found := coap_datagram.telemetry(datagram):
                if exchange := self._exchanges.begin(datagram, peer):
                    self._uploads.take(exchange, *found)
            else:
                coap_datagram.check(datagram)
                self._take_other(datagram, peer)
        except coap_datagram.FormatError:
            self._reset(datagram, peer)
        except Exception as error:
            answer = coap_answers.refused(error)
            if not coap_datagram.is_request(datagram):
                self._reset(datagram, peer)
            # A bad option in a non-confirmable message is met with silence (RFC 7252, 5.4.1).
            elif answer.code != coap_datagram.BAD_OPTION or coap_datagram.is_confirmable(datagram):
                self._socket.send(coap_datagram.response(datagram, self._exchanges.next_mid(), answer), peer)

    def _take_other(self, datagram: bytes, peer: Peer) -> None:
        if not coap_datagram.is_request(datagram):
            self._exchanges.heard(datagram, peer)
            self._reset(datagram, peer)  # a ping, or an answer to what nobody asked
        elif exchange := self._exchanges.begin(datagram, peer):
            if self._exchanges.has_room:
                self._exchanges.start(self._serve(exchange, Message.decode(datagram)))
            else:
                self._exchanges.answer(exchange, coap_answers.refused(unavailable("too many requests are under way")))

    def _reset(self, datagram: bytes, peer: Peer) -> None:
        if coap_datagram.is_confirmable(datagram):
            self._socket.send(coap_datagram.reset(datagram), peer)

    async def _serve(self, exchange: Exchange, request: Message) -> None:
        try:
            answer = await self._answer(exchange, request)
        except Exception as error:
            answer = coap_answers.refused(error)
        if answer is None:
            return
        if (request.opt.no_response or 0) >> (answer.code >> 5) - 1 & 1:
            self._exchanges.withhold(exchange)
        else:
            self._exchanges.answer(exchange, answer)

    async def _answer(self, exchange: Exchange, request: Message) -> Answer | None:
        """The answer of the resource, None when it was given."""
        path = request.opt.uri_path
        if path == READINGS:
            _check(request, POST, JSON)
            return await self._uploads.post(exchange, request, _token(request))
        if path == DISCOVERY:
            _check(request, GET, LINK_FORMAT)
            return coap_answers.content(_LINKS, {CONTENT_FORMAT: LINK_FORMAT}, request.opt.block2)
        if len(path) == 5 and path[:3] == ("api", "v1", "devices") and path[4] == "notifications":
            _check(request, GET, JSON)
            return await self._notifications.get(exchange, request, _token(request))
        if request.code <= _PATCHES:
            raise not_found("resource")
        raise CoapError("4.05", "method_not_allowed", "the resource has no such method")


def _check(request: Message, method: int, offered: int) -> None:
    if request.code != method:
        raise CoapError("4.05", "method_not_allowed", "the resource has no such method")
    if request.opt.accept not in (None, offered):
        raise CoapError("4.06", "not_acceptable", "the resource has no such representation")


def _token(request: Message) -> bytes:
    for query in request.opt.uri_query:
        name, _, value = query.partition("=")
        if name == "token":
            return str(value).encode()
    raise unauthenticated()
