"""The CoAP edge, asked by the clients of libcoap and aiocoap."""

import asyncio
import json

import pytest
from aiocoap import Context, Message

from tests.support.coap_client import POST
from tests.support.fake_coap import OURS, TOKEN, Edge
from tests.support.redis_server import until

pytestmark = pytest.mark.asyncio

BODY = b'{"value":"25.5","variableName":"temperature","recievedAt":"2026-01-20T10:30:00Z"}'
WITHIN_S = 5.0


async def coap_client(*arguments: str) -> str:
    """What coap-client of libcoap prints."""
    process = await asyncio.create_subprocess_exec(
        "coap-client-notls", "-B", "5", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await asyncio.wait_for(process.communicate(), 20)
    return out.decode().strip()


@pytest.mark.parametrize("options", [["-t", "json"], ["-t", "text"], [], ["-N"], ["-N", "-t", "json"], ["-A", "json"]])
async def test_libcoap_posts(edge: Edge, options: list[str]) -> None:
    """Confirmable or not, on the fast path or not, a reading is stored and the answer is that of HTTP."""
    answer = await coap_client("-m", "post", *options, "-e", BODY.decode(), edge.readings_url())
    assert json.loads(answer) == {
        "data": {
            "id": 1,
            "value": "25.5",
            "variableName": "temperature",
            "telemetryDataId": 5,
            "sensorUuid": "sensor-abc-123",
            "recievedAt": "2026-01-20T10:30:00.000Z",
        }
    }
    assert len(edge.uplink.readings) == 1
    assert edge.uplink.protocols == {"coap"}


async def test_libcoap_posts_in_blocks(edge: Edge) -> None:
    """A body over one datagram comes in blocks and is stored once."""
    value = "x" * 5000
    answer = await coap_client(
        "-m", "post", "-t", "json", "-e", json.dumps({"value": value, "variableName": "log"}), edge.readings_url()
    )
    assert json.loads(answer)["data"]["id"] == 1
    assert [stored.value for stored in edge.uplink.readings] == [f'"{value}"'.encode()]


async def test_libcoap_observes(edge: Edge) -> None:
    """The newest state, then each notification in its order; afterwards nobody listens."""
    asked = asyncio.create_task(coap_client("-w", "-s", "2", edge.notifications_url()))
    await until(lambda: bool(edge.downlink.all()), WITHIN_S, "registered")
    for number in range(3):
        edge.downlink.send(OURS.device_uuid, b'{"id":"17-%d"}' % number)
    assert (await asked).split() == ["{}", *(f'{{"id":"17-{n}"}}' for n in range(3))]
    await until(lambda: not edge.downlink.all(), WITHIN_S, "deregistered")
    assert await coap_client(edge.notifications_url()) == '{"id":"17-2"}'


async def test_libcoap_hears_that_its_observation_is_over(edge: Edge) -> None:
    """A client takes no notice of a second acknowledgement of its request, so the end is a message of its own."""
    asked = asyncio.create_task(coap_client("-w", "-s", "2", edge.notifications_url()))
    await until(lambda: bool(edge.downlink.all()), WITHIN_S, "registered")
    edge.auth.revoke(TOKEN)
    assert "4.01" in await asked


async def test_libcoap_discovers(edge: Edge) -> None:
    """/.well-known/core names the resource, in blocks when the client wants them small."""
    for options in ([], ["-b", "16"]):
        assert "</api/v1/datastreams/token>" in await coap_client(*options, f"{edge.base}/.well-known/core")


async def test_aiocoap_posts_and_observes(edge: Edge) -> None:
    """Another library: POST in one datagram and in blocks, and an observation."""
    client = await Context.create_client_context(transports=["udp6"])
    try:
        for size in (10, 3000):
            body = json.dumps({"value": "x" * size, "variableName": "log"}).encode()
            request = Message(code=POST, uri=edge.readings_url(), payload=body, content_format=50)
            assert (await client.request(request).response).code == 65
        request = client.request(Message(code=1, uri=edge.notifications_url(), observe=0))
        assert (await request.response).payload == b"{}"
        edge.downlink.send(OURS.device_uuid, b'{"id":1}')
        assert (await anext(aiter(request.observation))).payload == b'{"id":1}'
    finally:
        await client.shutdown()
    assert [len(stored.value) for stored in edge.uplink.readings] == [12, 3002]
