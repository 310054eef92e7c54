"""Observing a device's notifications over CoAP, on a real socket."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aemos_gateway import coap_observers
from aiocoap import Message
from aiocoap.numbers.constants import TransportTuning
from aiocoap.numbers.types import Type

from tests.support.coap_client import ACK, NON, OBSERVE, RST, RawClient, notifications, raw_client
from tests.support.fake_coap import OURS, THEIR_TOKEN, THEIRS, TOKEN, Edge, running_edge
from tests.support.redis_server import until

pytestmark = pytest.mark.asyncio

WITHIN_S = 5.0
DEREGISTER = (OBSERVE, b"\x01")


async def observe(client: RawClient, **fields: Any) -> Message:
    return await client.observe(OURS.device_uuid, device=TOKEN, **fields)


def acknowledge(client: RawClient, message: Message) -> None:
    client.send(bytes((0x40 | ACK << 4, 0)) + message.mid.to_bytes(2))


async def test_notifications_are_confirmable_and_numbered(edge: Edge, client: RawClient) -> None:
    """Also when the registration was not; the next one waits for the acknowledgement, and numbers only grow."""
    first = await observe(client, kind=NON)
    numbers = [first.opt.observe]
    acknowledge(client, first)
    for number in range(3):
        edge.downlink.send(OURS.device_uuid, b'{"id":%d}' % number)
    for number in range(3):
        told = await client.message()
        assert (told.mtype, told.code.dotted, told.token) == (Type.CON, "2.05", b"\x01")
        assert (told.payload, told.opt.content_format) == (b'{"id":%d}' % number, 50)
        assert told.opt.max_age == coap_observers.REFRESH_SECONDS + 60
        numbers.append(told.opt.observe)
        assert client.received.empty()
        acknowledge(client, told)
    assert numbers == sorted(set(numbers))


async def test_one_message_to_a_client_at_a_time(edge: Edge, client: RawClient) -> None:
    """However much it observes, and though another client acknowledges the same message id (RFC 7252, 4.7)."""
    for number in (1, 2):
        await observe(client, mid=number, token=bytes((number,)))
    edge.downlink.send(OURS.device_uuid, b'{"id":1}')
    told = [await client.message()]
    async with raw_client(edge.port) as other:
        acknowledge(other, told[0])
        assert await other.is_silent()
    assert client.received.empty()
    acknowledge(client, told[0])
    told.append(await client.message())
    assert {message.token for message in told} == {b"\x01", b"\x02"}


async def test_observer_that_leaves(edge: Edge, client: RawClient) -> None:
    """A reset, a deregistration, and a new registration with the same token each end it.
    As long as it observes, its device is connected."""
    await observe(client)
    assert edge.uplink.presence.open == {OURS.device_id}
    edge.downlink.send(OURS.device_uuid, b'{"id":1}')
    client.send(bytes((0x40 | RST << 4, 0)) + (await client.message()).mid.to_bytes(2))
    await until(lambda: not edge.downlink.all(), WITHIN_S, "reset")
    assert not edge.uplink.presence.open

    await observe(client, mid=2)
    await observe(client, mid=3)
    assert len(edge.downlink.all()) == 1
    answer = await client.ask(notifications(OURS.device_uuid, device=TOKEN, extra=[DEREGISTER], mid=4))
    assert (answer.payload, answer.opt.observe) == (b'{"id":1}', None)
    assert edge.downlink.all() == []


async def test_observer_that_dies(edge: Edge, client: RawClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """One unacknowledged notification ends all that a client observes, after MAX_TRANSMIT_WAIT (made short here)."""
    monkeypatch.setattr(TransportTuning, "ACK_TIMEOUT", 0.01)
    await observe(client)
    await observe(client, mid=2, token=b"2")
    edge.downlink.send(OURS.device_uuid, b'{"id":1}')
    await until(lambda: not edge.downlink.all(), WITHIN_S, "given up")
    assert client.received.qsize() == 1 + TransportTuning.MAX_RETRANSMIT


async def test_observer_is_listed_and_can_be_closed(edge: Edge, client: RawClient) -> None:
    """The connection is known by protocol and peer; closing it tells the client to register again."""
    await observe(client)
    [listener] = edge.downlink.all()
    assert (listener.protocol, listener.peer.partition(":")[0]) == ("coap", "127.0.0.1")
    listener.close()
    told = await client.message()
    assert (told.mtype, told.code.dotted, told.opt.observe, told.opt.max_age) == (Type.CON, "5.03", None, 1)
    assert edge.downlink.all() == []


async def test_stop_waits_for_acknowledgements() -> None:
    """A client that observes much is told of the end of each, though it gets one message at a time."""
    edge, told = Edge(), set()

    async def be_told(client: RawClient) -> None:
        for _ in range(3):
            message = await client.message()
            told.add((message.code.dotted, message.token))
            acknowledge(client, message)

    async with AsyncExitStack() as open_edge:
        await open_edge.enter_async_context(running_edge(edge, settle_s=WITHIN_S))
        async with raw_client(edge.port) as client:
            for number in range(3):
                await observe(client, mid=number, token=bytes((number,)))
            await asyncio.gather(open_edge.aclose(), be_told(client))
    assert told == {("5.03", bytes((number,))) for number in range(3)}


async def test_observer_whose_token_was_revoked(edge: Edge, client: RawClient) -> None:
    """It hears nothing any more but 4.01 (hard case 4)."""
    await observe(client)
    edge.auth.revoke(TOKEN)
    edge.downlink.send(OURS.device_uuid, b'{"id":1}')
    told = await client.message()
    assert (told.mtype, told.code.dotted, told.opt.observe) == (Type.CON, "4.01", None)
    assert edge.downlink.all() == []


async def test_quiet_observer_whose_token_was_revoked(edge: Edge, client: RawClient) -> None:
    """It is told 4.01 though there is nothing to hear, and the others are told nothing."""
    await observe(client)
    async with raw_client(edge.port) as other:
        await other.observe(THEIRS.device_uuid, device=THEIR_TOKEN)
        edge.auth.revoke(TOKEN)
        assert (await client.message()).code.dotted == "4.01"
        assert [listener.device_uuid for listener in edge.downlink.all()] == [THEIRS.device_uuid]
        assert other.received.empty()


async def test_too_many_observers(edge: Edge, client: RawClient) -> None:
    """One over the cap of a device is 5.03 with a time to come back (hard case 19); who observes can register again."""
    for number in range(coap_observers.MOST_PER_DEVICE):
        assert (await observe(client, mid=number, token=bytes((number,)))).code.dotted == "2.05"
    refused = await observe(client, mid=99, token=b"\x63")
    assert (refused.code.dotted, refused.opt.max_age) == ("5.03", 60)
    assert (await observe(client, mid=100, token=b"\x01")).code.dotted == "2.05"
    assert len(edge.downlink.all()) == coap_observers.MOST_PER_DEVICE


async def test_quiet_observation_is_refreshed(edge: Edge, client: RawClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest notification goes out again after a while, so that a client that is gone is found out."""
    monkeypatch.setattr(coap_observers.Inbox.next, "__defaults__", (0.05,))
    await observe(client)
    assert (await client.message()).payload == b"{}"
