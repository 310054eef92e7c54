"""Loads of readings over HTTP, MQTT and CoAP; what each answers is acknowledged readings a second."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import time
from itertools import count

from tests.bench.support import ROOT, Installation

CONNECTIONS = 256
MQTT_CONNECTIONS = 100
MQTT_IN_FLIGHT = 20
COAP_CLIENTS = 100
_HOT = 199
"""Of so many readings one raises an alert, and the device's next one ends it: one in a hundred changes a state. A prime,
so that it is not always the same devices whose turn it is."""
_COLD_BODY = b'{"value": "20.5", "variableName": "temperature"}'
_HOT_BODY = b'{"value": "30.5", "variableName": "temperature"}'


def http(
    installation: Installation, seconds: int, batch: int = 1, pause_ms: int = 0, devices: int | None = None
) -> float:
    """wrk over 256 connections, `batch` readings a request, a pause before each, of the first devices or of all.
    AssertionError when one was refused."""
    script = str(ROOT / "tests/bench/ingest.lua")
    url = installation.stack.demo["httpUrl"]
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", script, url]
    environment = os.environ | {
        "AEMOS_BENCH_TOKENS": str(installation.tokens(devices)),
        "AEMOS_BENCH_BATCH": str(batch),
        "AEMOS_BENCH_PAUSE_MS": str(pause_ms),
    }
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=seconds + 60)
    requests = re.search(r"Requests/sec: +([\d.]+)", done.stdout)
    assert requests, done.stdout
    assert "Non-2xx" not in done.stdout, done.stdout
    return float(requests[1]) * batch


class _Publisher(asyncio.Protocol):
    """One MQTT device that keeps 20 QoS 1 messages in flight, or sends as many again after a pause."""

    def __init__(self, device: dict[str, str], turns: count[int], pause: float) -> None:
        topic = f"aemos/devices/{device['uuid']}/telemetry".encode()
        self._bodies = [_frame(topic, _COLD_BODY), _frame(topic, _HOT_BODY)]
        self._connect = _connect(device)
        self._turns = turns
        self._pause = pause
        self._packet_id = 0
        self._acknowledging = False
        self.acknowledged = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        transport.write(self._connect)

    def data_received(self, data: bytes) -> None:
        if not self._acknowledging:
            assert data[:4] == b"\x20\x02\x00\x00", data
            self._acknowledging = True
            self._send(MQTT_IN_FLIGHT)
            return
        answers = len(data) // 4  # nothing else is ever sent to it, and never a part of one
        self.acknowledged += answers
        if self._pause:
            asyncio.get_running_loop().call_later(self._pause, self._send, answers)
        else:
            self._send(answers)

    def _send(self, messages: int) -> None:
        frames = []
        for _ in range(messages):
            self._packet_id = self._packet_id % 65535 + 1
            head, tail = self._bodies[next(self._turns) % _HOT == 0]
            frames.append(head + self._packet_id.to_bytes(2) + tail)
        self._transport.write(b"".join(frames))

    def close(self) -> None:
        """Goes without waiting for what is in flight."""
        self._transport.abort()


def _frame(topic: bytes, body: bytes) -> tuple[bytes, bytes]:
    """A QoS 1 PUBLISH before and behind its packet id."""
    variable = len(topic).to_bytes(2) + topic
    length = len(variable) + 2 + len(body)
    return bytes((0x32, length & 127 | 128, length >> 7)) + variable, body


def _connect(device: dict[str, str]) -> bytes:
    texts = (f"bench-{device['uuid']}", device["uuid"], device["token"])
    payload = b"".join(len(text).to_bytes(2) + text.encode() for text in texts)
    body = b"\x00\x04MQTT\x04\xc2\x00\x3c" + payload
    return bytes((0x10, len(body) & 127 | 128, len(body) >> 7)) + body


async def mqtt(installation: Installation, seconds: float, pause: float = 0.0) -> float:
    """100 devices, 20 messages in flight each; `pause` seconds between an acknowledgement and the next message."""
    address, turns = installation.stack.demo["mqtt"], count()
    loop = asyncio.get_running_loop()
    publishers = []
    for device in installation.stack.demo["devices"][:MQTT_CONNECTIONS]:
        made = await loop.create_connection(
            lambda d=device: _Publisher(d, turns, pause), address["host"], address["port"]
        )  # type: ignore[misc]
        publishers.append(made[1])
    await asyncio.sleep(1)  # warm
    began, before = time.perf_counter(), sum(p.acknowledged for p in publishers)
    await asyncio.sleep(seconds)
    rate = (sum(p.acknowledged for p in publishers) - before) / (time.perf_counter() - began)
    for publisher in publishers:
        publisher.close()
    return rate


class _CoapClient:
    """One CoAP device with one confirmable POST in flight."""

    def __init__(self, device: dict[str, str], address: tuple[str, int], turns: count[int]) -> None:
        query = f"token={device['token']}".encode()
        assert 13 <= len(query) < 269
        path = b"\xb3api\x02v1\x0bdatastreams\x05token"
        self._rest = path + bytes((0x4D, len(query) - 13)) + query + b"\xff"
        self._turns = turns
        self._mid = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.connect(address)
        self.acknowledged = 0
        asyncio.get_running_loop().add_reader(self._socket, self._readable)
        self._send()

    def _send(self) -> None:
        self._mid = (self._mid + 1) & 0xFFFF
        mid = self._mid.to_bytes(2)
        body = _HOT_BODY if next(self._turns) % _HOT == 0 else _COLD_BODY
        self._socket.send(b"\x42\x02" + mid + mid + self._rest + body)

    def _readable(self) -> None:
        answer = self._socket.recv(2048)
        assert answer[1] in (0, 65), answer
        if answer[1] == 65 and answer[2:4] == self._mid.to_bytes(2):
            self.acknowledged += 1
            self._send()

    def close(self) -> None:
        """Goes without waiting for what is in flight."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()


async def coap(installation: Installation, seconds: float) -> float:
    """100 devices, one confirmable POST in flight each."""
    host, port = installation.stack.demo["coapUrl"].removeprefix("coap://").split(":")
    turns: count[int] = count()
    devices = installation.stack.demo["devices"][:COAP_CLIENTS]
    clients = [_CoapClient(device, (host, int(port)), turns) for device in devices]
    await asyncio.sleep(1)  # warm
    began, before = time.perf_counter(), sum(c.acknowledged for c in clients)
    await asyncio.sleep(seconds)
    rate = (sum(c.acknowledged for c in clients) - before) / (time.perf_counter() - began)
    for client in clients:
        client.close()
    return rate
