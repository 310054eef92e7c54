"""Devices that send one reading after another and write down what was acknowledged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiocoap
import httpx

from tests.support.stack import Stack

ANSWER_SECONDS = 12.0
RETRY_SECONDS = 0.2


@dataclass(slots=True)
class History:
    """What one device did, in its order. Every value is sent once, so a row that is there twice shows."""

    device: dict[str, Any]
    sent: list[float] = field(default_factory=list)
    acknowledged: list[float] = field(default_factory=list)


class Link(Protocol):
    """A way to the gateway: one protocol."""

    async def send(self, value: float) -> bool:
        """Whether the reading was acknowledged. Raises OSError, TimeoutError when nobody can tell."""

    async def close(self) -> None:
        """Ends it."""


def body(value: float) -> bytes:
    """A temperature."""
    return json.dumps({"value": value, "variableName": "temperature"}).encode()


class Http:
    """POST."""

    def __init__(self, stack: Stack, device: dict[str, Any]) -> None:
        headers = {"Authorization": f"Bearer {device['token']}"}
        self._client = httpx.AsyncClient(base_url=stack.demo["httpUrl"], headers=headers, timeout=ANSWER_SECONDS)

    async def send(self, value: float) -> bool:
        try:
            return (await self._client.post("/api/v1/datastreams/token", content=body(value))).status_code == 201
        except httpx.HTTPError as error:
            raise OSError(str(error)) from error

    async def close(self) -> None:
        await self._client.aclose()


class Mqtt:
    """PUBLISH with QoS 1, never sent again: what was not acknowledged is left so."""

    def __init__(self, stack: Stack, device: dict[str, Any]) -> None:
        self._address = stack.demo["mqtt"]
        self._device = device
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._packet_id = 0

    async def send(self, value: float) -> bool:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                self._stream = self._stream or await self._connected()
                return await self._publish(*self._stream, body(value))
        except (OSError, EOFError, TimeoutError) as error:
            await self.close()
            raise OSError(str(error)) from error

    async def _publish(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, payload: bytes) -> bool:
        self._packet_id = self._packet_id % 65535 + 1
        topic = _text(f"aemos/devices/{self._device['uuid']}/telemetry")
        writer.write(_packet(0x32, topic + self._packet_id.to_bytes(2) + payload))
        return await reader.readexactly(4) == b"\x40\x02" + self._packet_id.to_bytes(2)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(self._address["host"], self._address["port"])
        texts = ("faults-" + self._device["uuid"], self._device["uuid"], self._device["token"])
        writer.write(_packet(0x10, b"\x00\x04MQTT\x04\xc2\x00\x3c" + b"".join(map(_text, texts))))
        if await reader.readexactly(4) != b"\x20\x02\x00\x00":
            raise ConnectionRefusedError("CONNACK")
        return reader, writer

    async def close(self) -> None:
        if self._stream is not None:
            self._stream[1].transport.abort()
            self._stream = None


def _text(text: str) -> bytes:
    return len(text.encode()).to_bytes(2) + text.encode()


def _packet(first: int, payload: bytes) -> bytes:
    assert 127 < len(payload) < 16384 or len(payload) < 128
    length = bytes((len(payload),)) if len(payload) < 128 else bytes((len(payload) & 127 | 128, len(payload) >> 7))
    return bytes((first,)) + length + payload


class Coap:
    """Confirmable POST; its library retransmits the datagram, which is the same message."""

    def __init__(self, stack: Stack, device: dict[str, Any]) -> None:
        self._uri = f"{stack.demo['coapUrl']}/api/v1/datastreams/token?token={device['token']}"
        self._context: aiocoap.Context | None = None

    async def send(self, value: float) -> bool:
        self._context = self._context or await aiocoap.Context.create_client_context(transports=["udp6"])
        request = aiocoap.Message(code=aiocoap.POST, uri=self._uri, payload=body(value))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return bool((await self._context.request(request).response).code == aiocoap.CREATED)
        except (aiocoap.error.Error, TimeoutError) as error:
            await self.close()  # so that nothing of it is retransmitted after we gave it up
            raise OSError(str(error)) from error

    async def close(self) -> None:
        if self._context is not None:
            await self._context.shutdown()
            self._context = None


LINKS: tuple[Callable[[Stack, dict[str, Any]], Link], ...] = (Http, Mqtt, Coap)


async def _device(history: History, link: Link, values: Callable[[int], float]) -> None:
    """Sends until cancelled; what nobody answered is not sent again."""
    try:
        while True:
            value = values(len(history.sent))
            history.sent.append(value)
            try:
                if await link.send(value):
                    history.acknowledged.append(value)
                    continue
            except OSError:
                pass
            await asyncio.sleep(RETRY_SECONDS)
    finally:
        await link.close()


def alternating(count: int) -> float:
    """Above 25 and below it in turn, each value once: every reading changes the device's state."""
    return round((30 if count % 2 else 10) + count / 100_000, 5)


@asynccontextmanager
async def load(stack: Stack, devices: Sequence[int]) -> AsyncIterator[list[History]]:
    """These demo devices, which sent nothing before, over HTTP, MQTT and CoAP in turn, until the end of the block."""
    histories = [History(stack.demo["devices"][number]) for number in devices]
    tasks = [
        asyncio.create_task(_device(history, LINKS[index % len(LINKS)](stack, history.device), alternating))
        for index, history in enumerate(histories)
    ]
    try:
        yield histories
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
