"""The UDP socket of the CoAP edge, in the place of aiocoap's own.

aiocoap asks the kernel for ICMP errors (IPV6_RECVERR). Under uvloop the first of them ends all reading: libuv stops
polling a socket that reports an error. So anybody who sends a request and closes the port would silence the edge.
Here errors are not asked for: a client that is gone is found out by its missing acknowledgements.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from aemos_core.process import PortInUse

MOST_PER_WAKE = 64
LONGEST_DATAGRAM = 4_096
_ANCILLARY = 256
_RECEIVE_BUFFER = 4 * 1024 * 1024
_VARIABLE = "AEMOS_COAP_PORT"
_MAPPED: Final = "::ffff:"
_ANY = socket.inet_pton(socket.AF_INET6, "::ffff:0.0.0.0")


Address: TypeAlias = tuple[Any, ...]


class Peer(NamedTuple):
    """Where a datagram came from, as IPv6 has it, and with `ancillary` the address of ours that it went to."""

    address: Address
    ancillary: list[tuple[int, int, bytes]]

    @property
    def pktinfo(self) -> bytes:
        """The address of ours (RFC 3542, 6.2)."""
        return self.ancillary[0][2]


_FROM_ANY = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("16sI", _ANY, 0))]


class Receiver(Protocol):
    """Who gets the datagrams."""

    def received(self, data: bytes, peer: Peer, cut: bool) -> None:
        """A datagram, `cut` to LONGEST_DATAGRAM; must not raise."""

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is closed."""


class DatagramSocket:
    """What aiocoap's UDP interface asks of its transport; where there is no IPv6, it maps addresses."""

    def __init__(self, sock: socket.socket, receiver: Receiver) -> None:
        self._sock = sock
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._over_ipv4 = sock.family == socket.AF_INET
        self._loop.add_reader(sock.fileno(), self._readable)

    def get_extra_info(self, name: str) -> socket.socket | None:
        """The socket."""
        return self._sock if name == "socket" else None

    def sendmsg(self, data: bytes, ancillary: list[tuple[int, int, bytes]], flags: int, address: Any) -> None:
        """Sends; a failure is like a lost datagram."""
        if self._over_ipv4:
            ancillary, address = [], (address[0].removeprefix(_MAPPED), address[1])
        try:
            self._sock.sendmsg((data,), ancillary, flags, address)
        except OSError:
            return

    def close(self) -> None:
        """No datagram comes or goes any more."""
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        self._loop.call_soon(self._receiver.connection_lost, None)

    def _readable(self) -> None:
        for _ in range(MOST_PER_WAKE):
            try:
                data, ancillary, flags, address = self._sock.recvmsg(LONGEST_DATAGRAM, _ANCILLARY)
            except OSError:
                return
            if self._over_ipv4:
                peer = Peer((_MAPPED + address[0], address[1], 0, 0), _FROM_ANY)
            else:
                peer = Peer(address, ancillary)
            self._receiver.received(data, peer, bool(flags & socket.MSG_TRUNC))


def bound(host: str, port: int) -> socket.socket:
    """A socket on the address, over IPv4 where there is no IPv6; PortInUse when it is taken.

    Without SO_REUSEPORT, which aiocoap sets: two servers on one port would share the datagrams unnoticed.
    """
    sock = udp_socket()
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        flags = socket.AI_PASSIVE | socket.AI_V4MAPPED
        sock.bind(socket.getaddrinfo(host or None, port, sock.family, socket.SOCK_DGRAM, 0, flags)[0][4])
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(port, _VARIABLE) from None
        raise
    return sock


def udp_socket() -> socket.socket:
    """Over both families where the kernel has IPv6; each datagram comes with the address that it went to."""
    try:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    except OSError:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    return sock
