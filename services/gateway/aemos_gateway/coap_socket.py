"""The UDP socket of the CoAP edge. It does not ask for ICMP errors: under uvloop the first of them would end all
reading, since libuv stops polling a socket that reports an error."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

from aemos_core.process import PortInUse, authority

MOST_PER_WAKE = 64
LONGEST_DATAGRAM = 4_096
_ANCILLARY = 256
_RECEIVE_BUFFER = 4 * 1024 * 1024
_VARIABLE = "AEMOS_COAP_PORT"
_MAPPED: Final = "::ffff:"

Address: TypeAlias = tuple[Any, ...]


class Peer(NamedTuple):
    """Where a datagram came from, as IPv6 has it, and with `ancillary` the address of ours that it went to."""

    address: Address
    ancillary: list[tuple[int, int, bytes]]

    def __str__(self) -> str:
        return authority(self.address[0].removeprefix(_MAPPED), self.address[1])


Received = Callable[[bytes, Peer, bool], None]
"""Gets a datagram, and whether it was cut to LONGEST_DATAGRAM; must not raise."""


class DatagramSocket:
    """Hands over what comes until it is closed; where there is no IPv6, it maps addresses."""

    def __init__(self, sock: socket.socket, received: Received) -> None:
        self._sock = sock
        self._received = received
        self._loop = asyncio.get_running_loop()
        self._over_ipv4 = sock.family == socket.AF_INET
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, datagram: bytes, peer: Peer) -> None:
        """Sends; a failure is like a lost datagram."""
        address, ancillary = peer
        if self._over_ipv4:
            address = (address[0].removeprefix(_MAPPED), address[1])
        try:
            self._sock.sendmsg((datagram,), ancillary, 0, address)
        except OSError:
            return

    def close(self) -> None:
        """No datagram comes or goes any more."""
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _readable(self) -> None:
        for _ in range(MOST_PER_WAKE):
            try:
                data, ancillary, flags, address = self._sock.recvmsg(LONGEST_DATAGRAM, _ANCILLARY)
            except OSError:
                return
            if self._over_ipv4:
                address = (_MAPPED + address[0], address[1], 0, 0)
            self._received(data, Peer(address, ancillary), bool(flags & socket.MSG_TRUNC))


def bound(host: str, port: int) -> socket.socket:
    """A socket on the address, over IPv4 where there is no IPv6; PortInUse when it is taken.

    Without SO_REUSEPORT: two servers on one port would share the datagrams unnoticed.
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
