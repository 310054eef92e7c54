"""The MQTT edge with clients that others wrote: paho and mosquitto."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import paho.mqtt.client as paho
import pytest
from aemos_core.errors import unavailable
from aemos_gateway.mqtt_device import Limits
from paho.mqtt.enums import CallbackAPIVersion

from tests.support.fake_mqtt_ports import (
    DEADLINE_S,
    READING,
    TOKEN,
    UUID,
    World,
    own,
    world,
)
from tests.support.redis_server import until


async def mosquitto(program: str, it: World, *arguments: str) -> asyncio.subprocess.Process:
    """mosquitto_pub or mosquitto_sub as the first device."""
    common = ["-h", "127.0.0.1", "-p", str(it.edge.port), "-V", "mqttv311", "-u", UUID, "-P", TOKEN]
    return await asyncio.create_subprocess_exec(
        program, *common, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


async def output(process: asyncio.subprocess.Process) -> tuple[int, bytes, bytes]:
    """Its end."""
    out, err = await asyncio.wait_for(process.communicate(), 2 * DEADLINE_S)
    assert process.returncode is not None
    return process.returncode, out, err


@pytest.mark.parametrize("qos", ["0", "1", "2"])
async def test_mosquitto_pub_stores(qos: str) -> None:
    """With every QoS, and a second time over."""
    async with world() as it:
        arguments = ["-t", own("telemetry"), "-q", qos, "-m", READING.decode(), "--repeat", "3"]
        assert await output(await mosquitto("mosquitto_pub", it, *arguments)) == (0, b"", b"")
        assert it.uplink.stored == [READING] * 3


async def test_mosquitto_sub_hears_and_is_refused_what_is_not_its_own() -> None:
    """Two messages of QoS 1, acknowledged."""
    async with world() as it:
        sub = await mosquitto("mosquitto_sub", it, "-t", own("notifications"), "-t", "#", "-q", "1", "-C", "2")
        await until(lambda: bool(it.downlink.of(UUID)), DEADLINE_S)
        it.notify(b'{"n":1}')
        it.notify(b'{"n":2}')
        code, out, err = await output(sub)
        assert (code, out) == (0, b'{"n":1}\n{"n":2}\n')
        assert err == b"" or b"denied" in err


async def test_mosquitto_is_told_that_it_is_not_authorized() -> None:
    """Its words for CONNACK 5."""
    async with world() as it:
        process = await mosquitto("mosquitto_pub", it, "-P", "wrong", "-t", own("telemetry"), "-m", "{}")
        code, _, err = await output(process)
        assert (code, b"not authori" in err.lower()) == (5, True)


@asynccontextmanager
async def paho_client(it: World) -> AsyncIterator[paho.Client]:
    """A paho client of the first device with its network thread."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="paho", clean_session=False)
    client.username_pw_set(UUID, TOKEN)
    client.reconnect_delay_set(1, 1)
    await asyncio.to_thread(client.connect, "127.0.0.1", it.edge.port)
    client.loop_start()
    try:
        yield client
    finally:
        client.disconnect()
        await asyncio.to_thread(client.loop_stop)


async def test_paho_publishes_hears_and_is_explained() -> None:
    """1,500 readings of each QoS, a notification, and an explanation."""
    heard: list[tuple[str, bytes]] = []
    async with world() as it, paho_client(it) as client:
        client.on_message = lambda _, __, message: heard.append((message.topic, bytes(message.payload)))
        client.subscribe([(own("notifications"), 1), (own("errors"), 1)])
        sent = [client.publish(own("telemetry"), READING, qos=n % 3) for n in range(4500)]
        await until(lambda: all(one.is_published() for one in sent), 4 * DEADLINE_S)
        await until(lambda: len(it.uplink.stored) == 4500, DEADLINE_S)
        it.notify(b"{}")
        client.publish(own("telemetry"), b"nonsense", qos=2)
        await until(lambda: len(heard) == 2, DEADLINE_S)
    assert heard[0] == (own("notifications"), b"{}")
    assert heard[1][0] == own("errors")
    assert json.loads(heard[1][1])["payload"] == "nonsense"


async def test_paho_sends_again_what_was_not_acknowledged() -> None:
    """It does so only on a new connection, which is why an unanswered one is closed."""
    async with world(Limits(resend_s=1.0)) as it, paho_client(it) as client:
        it.uplink.refusal = lambda _: unavailable("ingest is down")
        sent = [client.publish(own("telemetry"), READING, qos=1 + n % 2) for n in range(40)]
        await until(lambda: it.uplink.most_waiting > 0, DEADLINE_S)
        it.uplink.refusal = lambda _: None
        await until(lambda: all(one.is_published() for one in sent), 2 * DEADLINE_S)
        assert len(it.uplink.stored) == 40
