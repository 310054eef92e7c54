"""Clients that announce much, say little or go away (rows 7 and 24 of the design's table): memory stays as it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic
from typing import Any

import grpc
import psutil
import pytest

from tests.support.stack import Stack, running

CONNECTIONS = 100
CLOSED_WITHIN_S = 15.0
SERVED_WITHIN_S = 1.0
CANCELLED = 10_000
ROUNDS = 5
AT_ONCE = 100
MOST_GROWTH_BYTES = 20_000_000


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("var"), AEMOS_DEMO_DEVICES="1") as stack:
        assert stack.send(20)[0] == 201
        yield stack


@asynccontextmanager
async def flat_memory(stack: Stack, name: str) -> AsyncIterator[None]:
    """Within the block the process grows by less than is announced to it."""
    process = psutil.Process(stack.pids(name)[0])
    before = process.memory_info().rss
    yield
    assert process.memory_info().rss - before < MOST_GROWTH_BYTES


@pytest.mark.parametrize("half", [b"", b"\x10\xff\xff\xff\x7f\x00\x04MQTT"], ids=["silence", "268 MB announced"])
async def test_half_an_mqtt_packet(stack: Stack, half: bytes) -> None:
    """Whoever does not finish its CONNECT is closed; nothing is set aside for it, and others are served meanwhile."""
    mqtt = stack.demo["mqtt"]
    await _closed(stack, mqtt["host"], mqtt["port"], half)


@pytest.mark.parametrize(
    ("before", "last"),
    [(b"", b"408"), (b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n", b"200")],
    ids=["first", "next"],
)
async def test_half_an_http_head(stack: Stack, before: bytes, last: bytes) -> None:
    """Whoever does not finish its headers hears 408 and is closed; of its second request, as an idle connection is."""
    port = int(stack.demo["httpUrl"].rsplit(":", 1)[1])
    half = b"POST /api/v1/datastreams/token HTTP/1.1\r\nHost: a\r\nX: "
    heard = await _closed(stack, "127.0.0.1", port, before + half)
    assert {answer.rpartition(b"HTTP/1.1 ")[2][:3] for answer in heard} == {last}


async def test_an_endless_http_head(stack: Stack) -> None:
    """Headers without end are refused once they are too long to be any."""
    port = int(stack.demo["httpUrl"].rsplit(":", 1)[1])
    endless = b"GET /readyz HTTP/1.1\r\n" + (b"X: " + b"1" * 1_000 + b"\r\n") * 100
    heard = await _closed(stack, "127.0.0.1", port, endless)
    assert {answer[:13] for answer in heard} == {b"HTTP/1.1 431 "}


async def _closed(stack: Stack, host: str, port: int, half: bytes) -> list[bytes]:
    """What each of many connections hears before it is closed."""
    async with flat_memory(stack, "aemos_gateway"), asyncio.timeout(CLOSED_WITHIN_S):
        opened = [await asyncio.open_connection(host, port) for _ in range(CONNECTIONS)]
        for _, writer in opened:
            writer.write(half)
        began = monotonic()
        status, _ = await asyncio.to_thread(stack.send, 21)
        assert (status, monotonic() - began < SERVED_WITHIN_S) == (201, True)
        heard = await asyncio.gather(*(reader.read() for reader, _ in opened))
        for _, writer in opened:
            writer.close()
    return heard


@pytest.mark.parametrize("service", ["ingest", "rules"])
async def test_cancelled_calls(stack: Stack, service: str) -> None:
    """Ten thousand calls that are cancelled at once take no more than the ten thousand before, in one of five rounds
    (a leak grows in each), and the next client is answered."""
    process = psutil.Process(stack.pids(f"aemos_{service}")[0])
    async with _caller(stack, service) as call:
        most = [await _cancelled(call, process)]  # the pool of connections fills, and the allocator has its fragments
        while len(most) < 2 or most[-1] - most[-2] >= MOST_GROWTH_BYTES:
            assert len(most) <= ROUNDS, most
            most.append(await _cancelled(call, process))
    # On a connection of its own: once, a call that nobody had cancelled ended as cancelled by grpc's own client here.
    async with _caller(stack, service) as call:
        await call(timeout=10)


@asynccontextmanager
async def _caller(stack: Stack, service: str) -> AsyncIterator[Callable[..., Any]]:
    method = {"ingest": "/aemos.v1.DeviceService/ListDevices", "rules": "/aemos.v1.RuleChainService/ListRuleChains"}
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(stack.demo["grpc"][service], options=own) as channel:
        calling: Any = channel.unary_unary(method[service])
        yield partial(calling, b"", metadata=[("authorization", f"Bearer {stack.token}")])


async def _cancelled(call: Callable[..., Any], process: psutil.Process) -> int:
    """The most memory that was resident meanwhile."""
    most = 0
    for _ in range(CANCELLED // AT_ONCE):
        calls = [call(timeout=10) for _ in range(AT_ONCE)]
        await asyncio.sleep(0)  # they are sent
        for one in calls:
            one.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        most = max(most, process.memory_info().rss)
    return most
