"""Notifications to browsers and devices that come and go, with clients that nobody here wrote, on two replicas."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.notifications import (
    announce,
    client,
    follow,
    is_kept,
    organization_of,
    persistent,
    replica,
)
from tests.support.redis_server import until
from tests.support.stack import Stack, running

WITHIN_S = 20.0
GATEWAY_PORTS = ("AEMOS_HTTP_PORT", "AEMOS_MQTT_PORT", "AEMOS_COAP_PORT", "AEMOS_GATEWAY_GRPC_PORT")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("var")) as stack:
        yield stack


async def listens(port: int) -> None:
    """Waits for a replica's port."""

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    await until(answers, WITHIN_S)


async def test_a_kept_session_misses_nothing(stack: Stack, tmp_path: Path) -> None:
    """mosquitto_sub goes away and hears afterwards what it missed, also when its gateway was killed meanwhile, and on
    another gateway; a second connection with its client id, on the other gateway, ends the first one."""
    device, out = stack.demo["devices"][0], tmp_path / "out"
    command = persistent(stack, device)
    with client(out, *command) as first:
        await until(lambda: is_kept(stack, device), WITHIN_S)
        await announce(stack, device, range(5))
        await until(lambda: first.numbers() == [0, 1, 2, 3, 4], WITHIN_S)
    await announce(stack, device, range(5, 10))
    with client(out, *command) as second:
        await until(lambda: second.numbers() == list(range(10)), WITHIN_S)
    (pid,) = stack.pids("aemos_gateway")
    os.kill(pid, signal.SIGKILL)
    await announce(stack, device, range(10, 200))
    await until(lambda: stack.pids("aemos_gateway") not in ([], [pid]), WITHIN_S)
    await listens(stack.demo["mqtt"]["port"])
    with client(out, *command) as third, replica(stack, "aemos_gateway", *GATEWAY_PORTS) as ports:
        # QoS 1: what was acknowledged just before the kill may come again.
        await until(lambda: list(dict.fromkeys(third.numbers())) == list(range(200)), WITHIN_S, "after the kill")
        await listens(ports["AEMOS_MQTT_PORT"])
        third.process.send_signal(signal.SIGSTOP)  # it neither reads nor goes away
        await announce(stack, device, range(200, 300))
        elsewhere = persistent(stack, device, ports["AEMOS_MQTT_PORT"])
        with client(tmp_path / "elsewhere", *elsewhere) as fourth:
            await until(lambda: fourth.numbers() == list(range(200, 300)), WITHIN_S, "on another gateway")
            third.process.kill()
            await announce(stack, device, range(300, 310))
            await until(lambda: fourth.numbers() == list(range(200, 310)), WITHIN_S)


async def test_a_browser_misses_nothing_on_any_replica(stack: Stack, tmp_path: Path) -> None:
    """Socket.IO clients of two notify processes hear all in order; when one is killed, its client goes on with the last
    id it heard."""
    device = stack.demo["devices"][1]
    subject, broader = {"deviceUuid": device["uuid"]}, {"organizationId": organization_of(stack)}
    ports = "AEMOS_SOCKETIO_PORT", "AEMOS_NOTIFY_GRPC_PORT"
    with replica(stack, "aemos_notify", *ports) as own:
        await listens(own["AEMOS_SOCKETIO_PORT"])
        elsewhere = f"http://127.0.0.1:{own['AEMOS_SOCKETIO_PORT']}"
        with (
            client(tmp_path / "one", *follow(stack, subject)) as one,
            client(tmp_path / "two", *follow(stack, subject, elsewhere)) as two,
            client(tmp_path / "all", *follow(stack, broader)) as all_,
        ):
            for browser in (one, two, all_):
                await until(lambda b=browser: "answer" in b.text(), WITHIN_S)  # type: ignore[misc]
            await announce(stack, device, range(100))
            (pid,) = stack.pids("aemos_notify")
            os.kill(pid, signal.SIGKILL)
            await announce(stack, device, range(100, 300))
            await until(lambda: stack.pids("aemos_notify") not in ([], [pid]), WITHIN_S)
            await announce(stack, device, range(300, 310))
            for browser in (one, two, all_):
                # Who follows the organization hears other tests' first.
                await until(lambda b=browser: b.numbers()[-310:] == list(range(310)), WITHIN_S)  # type: ignore[misc]


async def test_an_observer_hears_the_newest(stack: Stack, tmp_path: Path) -> None:
    """coap-client-notls -s is told of notifications as they come, and first of the newest."""
    device = stack.demo["devices"][2]
    url = f"{stack.demo['coapUrl']}/api/v1/devices/{device['uuid']}/notifications?token={device['token']}"
    with client(tmp_path / "coap", "coap-client-notls", "-s", "60", "-w", "-m", "get", url) as observer:
        await until(lambda: "{}" in observer.text(), WITHIN_S)
        await announce(stack, device, [1, 2, 3], pause=0.2)
        await until(lambda: 3 in observer.numbers(), WITHIN_S)
        with client(tmp_path / "late", "coap-client-notls", "-s", "60", "-w", "-m", "get", url) as late:
            await until(lambda: late.numbers() == [3], WITHIN_S)
