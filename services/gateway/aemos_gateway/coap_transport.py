"""What AEMOS changes inside aiocoap 0.4.17, all of it here; tests/unit/test_library_contract_aiocoap.py watches it.

Private names that are used: `MessageInterfaceUDP6._create_transport_endpoint` and `_ctx`; `MessageManager.
_deduplicate_message`, `_store_response_for_duplicates`, `_continue_backlog`, `_backlogs`, `_send_initially`,
`_next_message_id`. Why:

- A reading is recognised on the datagram, up to 64 datagrams per wake, before aiocoap makes a message of it.
- What aiocoap would die of silently, or keep for ever, is answered before it sees it.
- Duplicates are remembered as bytes without a timer each (aiocoap: 3.4 kB for 247 s).
- An acknowledgement does not search through all exchanges for the next message to the same remote.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from typing import Any, Final
from weakref import WeakValueDictionary

from aemos_core.errors import AemosError, Kind, internal
from aemos_core.process import PortInUse
from aiocoap import Context, Message
from aiocoap.messagemanager import MessageManager
from aiocoap.numbers.constants import Reliable
from aiocoap.numbers.types import ACK, CON, RST
from aiocoap.tokenmanager import TokenManager
from aiocoap.transports.udp6 import MessageInterfaceUDP6, UDP6EndpointAddress
from aiocoap.util.asyncio.recvmsg import RecvmsgSelectorDatagramTransport

from aemos_gateway import coap_answers, coap_datagram
from aemos_gateway.coap_answers import JSON, Answer
from aemos_gateway.coap_recent import Recent
from aemos_gateway.coap_uploads import Peer, Uploads

log = logging.getLogger("aemos.gateway")

MOST_PER_WAKE = 64
MOST_DUPLICATES = 10_000
"""Requests per generation that aiocoap's own path remembers."""
_LONGEST_DATAGRAM = RecvmsgSelectorDatagramTransport.max_size
_ANCILLARY = 256
_RECEIVE_BUFFER = 4 * 1024 * 1024
_VARIABLE = "AEMOS_COAP_PORT"
_MAPPED: Final = "::ffff:"
_ANY = socket.inet_pton(socket.AF_INET6, "::ffff:0.0.0.0")
_FROM_ANY = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("16sI", _ANY, 0))]


def as_message(answer: Answer) -> Message:
    """The answer for aiocoap to send."""
    message = Message(code=answer.code, payload=answer.payload, content_format=JSON)
    message.opt.max_age = answer.max_age
    message.opt.size1 = answer.size1
    return message


class EdgeMessages(MessageManager):  # type: ignore[misc]
    """aiocoap's message layer with a bounded memory."""

    def __init__(self, token_manager: TokenManager, uploads: Uploads) -> None:
        super().__init__(token_manager)
        self.uploads = uploads
        self._seen: Recent[tuple[Any, int], _Seen] = Recent(MOST_DUPLICATES)
        self._free: WeakValueDictionary[Any, asyncio.Event] = WeakValueDictionary()

    def next_mid(self) -> int:
        """A message id of ours."""
        return int(self._next_message_id())

    @property
    def address(self) -> tuple[Any, ...]:
        """The socket's own address."""
        return tuple(self.message_interface.transport.get_extra_info("socket").getsockname())

    async def ready(self, remote: Any) -> None:
        """Returns when no confirmable message to the remote is unacknowledged (NSTART is 1: RFC 7252, 4.7)."""
        while remote in self._backlogs:
            free = self._free.setdefault(remote, asyncio.Event())
            await free.wait()

    def _deduplicate_message(self, message: Message) -> bool:
        key = (message.remote, message.mid)
        seen = self._seen.get(key)
        if seen is None or seen.token != message.token:
            self._seen.put(key, _Seen(message.token))
            return False
        if message.mtype is CON and seen.response:
            self.message_interface.transmit_to(seen.response, message.remote)
        return True

    def _store_response_for_duplicates(self, message: Message) -> None:
        # Not our own CON and NON: their message ids are ours, and mean another request of the remote.
        if message.mtype in (ACK, RST) and (seen := self._seen.get((message.remote, message.mid))):
            seen.response = message.encode()

    def _continue_backlog(self, remote: Any) -> None:
        waiting = self._backlogs[remote]
        while waiting:
            message, on_error = waiting.pop(0)
            self._send_initially(message, on_error)
            if message.mtype is CON:
                return
        del self._backlogs[remote]
        if free := self._free.pop(remote, None):
            free.set()


class _Seen:
    """A request that came, and the bytes that answer its duplicates."""

    __slots__ = ("response", "token")

    def __init__(self, token: bytes) -> None:
        self.token = token
        self.response = b""


class EdgePort(MessageInterfaceUDP6):  # type: ignore[misc]
    """aiocoap's UDP interface; readings and bad datagrams never reach aiocoap."""

    def connection_made(self, transport: Any) -> None:
        """The socket is there: from now on both can speak to each other."""
        super().connection_made(transport)
        self._ctx.message_interface = self

    def datagram_msg_received(self, data: bytes, ancdata: Any, flags: int, address: Any) -> None:
        """Takes the datagram that woke us and those that wait behind it."""
        sock = self.transport.get_extra_info("socket")
        for _ in range(MOST_PER_WAKE):
            self._received(data, Peer(address, ancdata), flags)
            try:
                data, ancdata, flags, address = sock.recvmsg(_LONGEST_DATAGRAM, _ANCILLARY)
            except OSError:  # nothing waits, or an ICMP error that the error queue tells in full
                return
        self._received(data, Peer(address, ancdata), flags)

    def transmit(self, datagram: bytes, peer: Peer) -> None:
        """Sends; a failure is like a lost datagram."""
        self.transport.sendmsg(datagram, peer.ancillary, 0, peer.address)

    def transmit_to(self, datagram: bytes, remote: UDP6EndpointAddress) -> None:
        """Sends to where a message came from."""
        ancillary = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, remote.pktinfo)] if remote.pktinfo else []
        self.transmit(datagram, Peer(remote.sockaddr, ancillary))

    def next_mid(self) -> int:
        """A message id of ours."""
        return int(self._ctx.next_mid())

    def send_separately(self, answer: Answer, token: bytes, peer: Peer) -> None:
        """Sends the answer as a confirmable message of its own, until it is acknowledged (RFC 7252, 5.2.2)."""
        message = as_message(answer)
        message.token = token
        message.transport_tuning = Reliable()
        message.remote = UDP6EndpointAddress(peer.address, self, pktinfo=_pktinfo(peer)).as_response_address()
        self._ctx.send_message(message, lambda: None)

    def _received(self, data: bytes, peer: Peer, flags: int) -> None:
        try:
            if flags & socket.MSG_TRUNC:
                raise AemosError(Kind.TOO_LARGE, f"a datagram has at most {_LONGEST_DATAGRAM} bytes: use Block1")
            if not self._ctx.uploads.take(self, data, peer):
                coap_datagram.check(data)
                super().datagram_msg_received(data, peer.ancillary, flags, peer.address)
        except coap_datagram.FormatError:
            if coap_datagram.is_confirmable(data):
                self.transmit(coap_datagram.reset(data), peer)
        except AemosError as error:
            self._refuse(data, peer, error)
        except Exception as error:
            log.error("a CoAP datagram could not be handled: %s", type(error).__name__, exc_info=error)
            self._refuse(data, peer, internal())

    def _refuse(self, data: bytes, peer: Peer, error: AemosError) -> None:
        answer = coap_answers.refused(error)
        # A bad option in a non-confirmable message is met with silence (RFC 7252, 5.4.1).
        silent = answer.code == coap_datagram.BAD_OPTION and not coap_datagram.is_confirmable(data)
        if coap_datagram.is_request(data) and not silent:
            self.transmit(coap_datagram.response(data, self.next_mid(), answer), peer)


class _EdgePort4(EdgePort):
    """The same where the kernel has no IPv6: aiocoap is told of mapped addresses."""

    def _received(self, data: bytes, peer: Peer, flags: int) -> None:
        host, port = peer.address
        super()._received(data, Peer((_MAPPED + host, port, 0, 0), _FROM_ANY), flags)


class _Transport4(RecvmsgSelectorDatagramTransport):  # type: ignore[misc]
    def sendmsg(self, data: bytes, ancdata: Any, flags: int, address: Any) -> None:
        super().sendmsg(data, [], flags, (address[0].removeprefix(_MAPPED), address[1]))


def _pktinfo(peer: Peer) -> bytes:
    return next(data for level, kind, data in peer.ancillary if kind == socket.IPV6_PKTINFO)


async def open_port(context: Context, host: str, port: int, uploads: Uploads) -> EdgeMessages:
    """Listens on the address (port 0: a free one) and hands requests to the context; PortInUse when it is taken."""
    sock = _bound(host, port)
    tokens = TokenManager(context)
    tokens.token_interface = messages = EdgeMessages(tokens, uploads)
    await _listen(sock, messages, context)
    context.request_interfaces.append(tokens)
    return messages


def _bound(host: str, port: int) -> socket.socket:
    """Without SO_REUSEPORT, which aiocoap sets: two servers on one port would share the datagrams unnoticed."""
    sock = _udp_socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        flags = socket.AI_PASSIVE | socket.AI_V4MAPPED
        sock.bind(socket.getaddrinfo(host or None, port, sock.family, socket.SOCK_DGRAM, 0, flags)[0][4])
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(port, _VARIABLE) from None
        raise
    return sock


def _udp_socket() -> socket.socket:
    try:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    except OSError:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return sock


async def _listen(sock: socket.socket, messages: EdgeMessages, context: Context) -> None:
    loop = asyncio.get_running_loop()
    if sock.family == socket.AF_INET6:
        await EdgePort._create_transport_endpoint(sock, messages, context.log, loop)
        return
    sock.setblocking(False)
    edge, waiter = _EdgePort4(messages, context.log, loop), loop.create_future()
    _Transport4(loop, sock, edge, waiter)
    await waiter
    await edge.ready
