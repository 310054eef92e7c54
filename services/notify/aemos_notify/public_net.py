"""Connections to public addresses only: no webhook may reach into the network that AEMOS runs in (SSRF).

The address is looked up, checked and connected to in one step, so a name that answers differently the second time
(rebinding) gains nothing. Beside its public interface this touches `httpx.AsyncHTTPTransport._pool`, which
tests/unit/notify/test_public_net.py holds.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpcore
import httpx

LOOKUP_SECONDS = 3.0
_MOST_LOOKUPS = 32
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class NotPublic(Exception):
    """The host has an address that no webhook may reach."""


class PublicNet:
    """Looks hosts up; `allowed` are networks that may be reached though they are not public."""

    def __init__(self, allowed: Sequence[Network] = ()) -> None:
        self._allowed = allowed
        # Threads of its own: a name server that does not answer holds up lookups, and nothing else of the process.
        self._lookups = ThreadPoolExecutor(_MOST_LOOKUPS, thread_name_prefix="lookup")

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host; NotPublic unless every one may be reached, OSError when there is none."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(LOOKUP_SECONDS):
            lookup = partial(socket.getaddrinfo, host.strip("[]"), port, type=socket.SOCK_STREAM)
            found = await loop.run_in_executor(self._lookups, lookup)
        addresses = [str(info[4][0]) for info in found]
        if not addresses or not all(self._may_reach(address) for address in addresses):
            raise NotPublic("the address is not public")
        return addresses

    def _may_reach(self, text: str) -> bool:
        address = ipaddress.ip_address(text.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
            address = inner or address
        if any(address.version == network.version and address in network for network in self._allowed):
            return True
        return address.is_global and not (address.is_multicast or address.is_reserved or _is_old_local(address))

    def transport(self) -> httpx.AsyncHTTPTransport:
        """A transport of httpx that connects by this network only."""
        transport = httpx.AsyncHTTPTransport(trust_env=False, retries=0)
        transport._pool._network_backend = _Backend(self)
        return transport


def _is_old_local(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return isinstance(address, ipaddress.IPv6Address) and address.is_site_local  # fec0::/10, of RFC 3513


def networks(texts: Iterable[str]) -> list[Network]:
    """Of "10.0.0.0/8"; ValueError for what is none."""
    return [ipaddress.ip_network(text.strip()) for text in texts if text.strip()]


class _Backend(httpcore.AsyncNetworkBackend):
    def __init__(self, net: PublicNet) -> None:
        self._net = net
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            address = (await self._net.addresses(host, port))[0]
        except (NotPublic, OSError, TimeoutError, UnicodeError) as error:
            raise httpcore.ConnectError(str(error) or type(error).__name__) from error
        return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)
