"""The socket of the CoAP edge: its port, its families, and what clients can do to it."""

import socket

import pytest
import uvloop
from aemos_core.process import PortInUse
from aemos_gateway import coap_socket
from aemos_gateway.coap_edge import CoapEdge

from tests.support.coap_client import POST, QUERY, datagram, raw_client, reading
from tests.support.fake_coap import OURS, TOKEN, Edge, running_edge

pytestmark = pytest.mark.asyncio

BODY = b'{"value":"25.5","variableName":"temperature","recievedAt":"2026-01-20T10:30:00Z"}'


@pytest.fixture(scope="module")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    return uvloop.EventLoopPolicy()


async def test_port_in_use() -> None:
    """A second edge on the port says so and names the setting, instead of sharing the datagrams."""
    edge = Edge()
    async with running_edge(edge):
        with pytest.raises(PortInUse, match="AEMOS_COAP_PORT"):
            CoapEdge("127.0.0.1", edge.port, edge.auth, edge.uplink, edge.downlink)


@pytest.mark.parametrize("asked", ["127.0.0.1", "::1"])
async def test_both_families(asked: str) -> None:
    """Bound to every address, it answers over IPv4 and IPv6."""
    edge = Edge()
    async with running_edge(edge, "::"), raw_client(edge.port, asked) as client:
        assert (await client.ask(reading(BODY, device=TOKEN))).code.dotted == "2.01"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_without_ipv6(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """Where the kernel has no IPv6, everything works over IPv4: both paths, and observing."""
    monkeypatch.setattr(coap_socket, "udp_socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    edge = Edge()
    async with running_edge(edge, host), raw_client(edge.port) as client:
        for mid, extra in ((1, []), (2, [(17, b"\x32")])):
            assert (await client.ask(reading(BODY, device=TOKEN, mid=mid, extra=extra))).code.dotted == "2.01"
        assert (await client.observe(OURS.device_uuid, device=TOKEN, mid=3)).payload == b"{}"
        edge.downlink.send(OURS.device_uuid, b'{"id":1}')
        assert (await client.message()).payload == b'{"id":1}'
        assert (await client.ask(datagram(POST, [(QUERY, b"\xff")], mid=4))).code.dotted == "4.00"


async def test_clients_that_vanish() -> None:
    """An answer to a closed port comes back as an ICMP error; libuv stops polling a socket that reports it."""
    edge = Edge()
    async with running_edge(edge), raw_client(edge.port) as client:
        for mid in range(20):
            async with raw_client(edge.port) as other:
                other.send(reading(BODY, device=TOKEN, mid=mid))
            assert (await client.ask(reading(BODY, device=TOKEN, mid=mid))).code.dotted == "2.01"
