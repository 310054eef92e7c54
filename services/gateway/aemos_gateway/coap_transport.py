"""What AEMOS changes inside aiocoap 0.4.17, all of it here; tests/unit/test_library_contract_aiocoap.py watches it.

Private names that are used: `MessageInterfaceUDP6._ctx`; `MessageManager._deduplicate_message`,
`_store_response_for_duplicates`, `_continue_backlog`, `_backlogs`, `_send_initially`, `_next_message_id`. Why:

- The socket is ours (coap_socket), and a reading is recognised on its datagram before aiocoap makes a message of it.
- What aiocoap would die of silently, or keep for ever, is answered before it sees it.
- Duplicates are remembered as bytes without a timer each (aiocoap: 3.4 kB for 247 s).
- An acknowledgement does not search through all exchanges for the next message to the same remote.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any
from weakref import WeakValueDictionary

from aemos_core.errors import AemosError, Kind, internal
from aiocoap import Context, Message
from aiocoap.messagemanager import MessageManager
from aiocoap.numbers.constants import Reliable
from aiocoap.numbers.types import ACK, CON, RST
from aiocoap.tokenmanager import TokenManager
from aiocoap.transports.udp6 import MessageInterfaceUDP6, UDP6EndpointAddress

from aemos_gateway import coap_answers, coap_datagram
from aemos_gateway.coap_answers import JSON, Answer
from aemos_gateway.coap_recent import Recent
from aemos_gateway.coap_socket import LONGEST_DATAGRAM, DatagramSocket, Peer, bound
from aemos_gateway.coap_uploads import Uploads

log = logging.getLogger("aemos.gateway")

MOST_DUPLICATES = 10_000
"""Requests per generation that aiocoap's own path remembers."""


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

    def received(self, data: bytes, peer: Peer, cut: bool) -> None:
        """A datagram from the socket. Whatever is wrong with it or with us is answered, if it is a request."""
        try:
            if cut:
                raise AemosError(Kind.TOO_LARGE, f"a datagram has at most {LONGEST_DATAGRAM} bytes: use Block1")
            if not self._ctx.uploads.take(self, data, peer):
                coap_datagram.check(data)
                self.datagram_msg_received(data, peer.ancillary, 0, peer.address)
        except coap_datagram.FormatError:
            if coap_datagram.is_confirmable(data):
                self.transmit(coap_datagram.reset(data), peer)
        except AemosError as error:
            self._refuse(data, peer, error)
        except Exception as error:
            log.error("a CoAP datagram could not be handled: %s", type(error).__name__, exc_info=error)
            self._refuse(data, peer, internal())

    def transmit(self, datagram: bytes, peer: Peer) -> None:
        """Sends; a failure is like a lost datagram."""
        self.transport.sendmsg(datagram, peer.ancillary, 0, peer.address)

    def transmit_to(self, datagram: bytes, remote: UDP6EndpointAddress) -> None:
        """Sends to where a message came from."""
        ancillary = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, remote.pktinfo)]
        self.transmit(datagram, Peer(remote.sockaddr, ancillary))

    def next_mid(self) -> int:
        """A message id of ours."""
        return int(self._ctx.next_mid())

    def send_separately(self, answer: Answer, token: bytes, peer: Peer) -> None:
        """Sends the answer as a confirmable message of its own, until it is acknowledged (RFC 7252, 5.2.2)."""
        message = as_message(answer)
        message.token = token
        message.transport_tuning = Reliable()
        message.remote = UDP6EndpointAddress(peer.address, self, pktinfo=peer.pktinfo).as_response_address()
        self._ctx.send_message(message, lambda: None)

    def _refuse(self, data: bytes, peer: Peer, error: AemosError) -> None:
        answer = coap_answers.refused(error)
        # A bad option in a non-confirmable message is met with silence (RFC 7252, 5.4.1).
        silent = answer.code == coap_datagram.BAD_OPTION and not coap_datagram.is_confirmable(data)
        if coap_datagram.is_request(data) and not silent:
            self.transmit(coap_datagram.response(data, self.next_mid(), answer), peer)


def open_port(context: Context, host: str, port: int, uploads: Uploads) -> EdgeMessages:
    """Listens on the address (port 0: a free one) and hands requests to the context; PortInUse when it is taken."""
    sock = bound(host, port)
    tokens = TokenManager(context)
    messages = EdgeMessages(tokens, uploads)
    edge = EdgePort(messages, context.log, context.loop)
    tokens.token_interface = messages
    messages.message_interface = edge
    edge.connection_made(DatagramSocket(sock, edge))
    context.request_interfaces.append(tokens)
    return messages
