"""How long one reading takes while nothing else is going on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time

import socketio

from tests.bench.support import median, quantile
from tests.support.stack import Stack

SAMPLES = 300
_WARM_UP = 20


class Client:
    """One HTTP connection of a device: as lean as a device's, so that the figure is the server's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> None:
        self._reader = reader
        self._writer = writer
        self._head = f"POST /api/v1/datastreams/token HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n"

    async def post(self, value: float) -> None:
        """Sends a temperature; returns when it is acknowledged."""
        body = json.dumps({"value": value, "variableName": "temperature"})
        self._writer.write(f"{self._head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert head.startswith(b"HTTP/1.1 201"), head
        assert length, head
        await self._reader.readexactly(int(length[1]))


async def latency(stack: Stack) -> dict[str, float]:
    """One client, one reading at a time, each changing a state: ms to the 201, and to the Socket.IO event."""
    device = stack.demo["devices"][0]
    browser = socketio.AsyncClient()
    arrived: asyncio.Queue[float] = asyncio.Queue()
    browser.on("device-state-change", lambda _: arrived.put_nowait(time.perf_counter()))
    await browser.connect(stack.demo["socketIoUrl"], auth={"token": stack.token}, transports=["websocket"])
    await browser.call("subscribe", {"deviceUuid": device["uuid"]})
    answered, heard = [], []
    address = stack.demo["httpUrl"].removeprefix("http://").split(":")
    client = Client(*await asyncio.open_connection(*address), device["token"])
    # Whatever the round before left, the device is normal now, and what was announced of that has arrived.
    for value in (26, 24):
        await client.post(value)
    with contextlib.suppress(TimeoutError):
        while await asyncio.wait_for(arrived.get(), 2):
            pass
    for number in range(SAMPLES + _WARM_UP):
        began = time.perf_counter()
        await client.post(26 - number % 2 * 2)
        answer = time.perf_counter() - began
        at = await asyncio.wait_for(arrived.get(), 10)
        if number >= _WARM_UP:
            answered.append(answer * 1000)
            heard.append((at - began) * 1000)
    await browser.disconnect()
    return {
        "post_p50": median(answered),
        "post_p99": quantile(answered, 0.99),
        "event_p50": median(heard),
        "event_p99": quantile(heard, 0.99),
    }
