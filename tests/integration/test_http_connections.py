"""Connections of HTTP clients over real sockets: offers of another protocol, requests in a row, and what is none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import uvicorn
from aemos_core import http_heads
from aemos_gateway import http_body
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.server import ServerState

from tests.support.http_server import next_answer, serving

pytestmark = pytest.mark.asyncio
GET = b"GET /size HTTP/1.1\r\nHost: a\r\nX: " + b"1" * 150 + b"\r\n\r\n"
CHUNK = 40_001
"""More than a head may have, and no multiple of what a request has."""


async def size(request: Request) -> Response:
    """Says how long the body is."""
    return PlainTextResponse(str(len(await http_body.read(request.receive, 1_000_000))))


async def early(_: Request) -> Response:
    """Answers without looking at the body."""
    return PlainTextResponse("early")


@pytest.fixture
async def connection() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    app = Starlette(routes=[Route("/size", size, methods=["GET", "POST"]), Route("/early", early, methods=["POST"])])
    async with serving(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.close()


async def answered(reader: asyncio.StreamReader) -> bytes:
    """The body of the next answer."""
    return (await next_answer(reader))[1]


async def test_an_offer_of_http2_leaves_a_request_its_body(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    """Java's HttpClient makes it with the first request of each connection; the next one is answered too."""
    reader, writer = connection
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nContent-Length: 5\r\nHTTP2-Settings: AAEAAEAA\r\nUpgrade: h2c\r\n"
    writer.write(b"POST /size HTTP/1.1\r\nHost: a\r\n" + offer + b"\r\n12345" + GET)
    async with asyncio.timeout(10):
        assert [await answered(reader), await answered(reader)] == [b"5", b"0"]


async def test_requests_in_a_row_are_not_one_long_head(
    monkeypatch: pytest.MonkeyPatch, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter]
) -> None:
    """Wherever the network cuts them, and for longer than one head may take."""
    monkeypatch.setattr(http_heads, "HEAD_SECONDS", 0.3)
    reader, writer = connection
    began, sent, rest = time.monotonic(), 0, b""
    async with asyncio.timeout(20):
        while time.monotonic() - began < 1.0:
            rest += GET * 400
            sent += 400
            while len(rest) > CHUNK:
                writer.write(rest[:CHUNK])
                rest = rest[CHUNK:]
                for _ in range(CHUNK // len(GET)):
                    assert await answered(reader) == b"0"
                    sent -= 1
        writer.write(rest)
        for _ in range(sent):
            assert await answered(reader) == b"0"


@pytest.mark.parametrize(
    ("request_", "more"),
    [
        (GET, b"\r\n"),
        (b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n", b"x"),
    ],
    ids=["blank lines", "the body of an answered request"],
)
async def test_what_belongs_to_no_request_holds_no_connection(
    monkeypatch: pytest.MonkeyPatch,
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    request_: bytes,
    more: bytes,
) -> None:
    """It stops the clock of an idle connection, and starts that of a late request (row 7)."""
    monkeypatch.setattr(http_heads, "HEAD_SECONDS", 0.3)
    reader, writer = connection
    writer.write(request_)
    await answered(reader)
    writer.write(more)
    async with asyncio.timeout(10):
        assert await reader.read() == b""


async def test_a_client_that_says_no_more_is_answered() -> None:
    """`nc -N` closes its half when it has sent its request."""
    asked, gone_on = asyncio.Event(), asyncio.Event()

    async def slow(_: Request) -> Response:
        asked.set()
        await gone_on.wait()
        return PlainTextResponse("late")

    async with serving(Starlette(routes=[Route("/size", size), Route("/slow", slow)])) as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        await asked.wait()
        writer.write_eof()
        other_reader, other = await asyncio.open_connection("127.0.0.1", port)
        other.write(GET)
        assert await answered(other_reader) == b"0"  # so the server has heard of the end
        gone_on.set()
        assert [await answered(reader), await reader.read()] == [b"late", b""]
        for each in (writer, other):
            each.close()


async def test_requests_in_a_row_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for an answer keeps the rest unread; what one read brings over the bound ends the connection."""
    monkeypatch.setattr(http_heads, "MOST_PIPELINED", 10)
    gone_on, most = asyncio.Event(), 0

    async def wait(_: Request) -> Response:
        nonlocal most
        most += 1
        await gone_on.wait()
        return PlainTextResponse("")

    async with serving(Starlette(routes=[Route("/", wait)])) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 1_000)
        await writer.drain()
        gone_on.set()
        async with asyncio.timeout(10):
            answers = await reader.read()
        writer.close()
    assert answers.count(b"HTTP/1.1 200") == most == 11
    assert answers.count(b"connection: close") == 1


class FakeTransport(asyncio.Transport):
    """Says whether it is read from and closed."""

    reading, closed = True, False

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def write(self, data: object) -> None:
        """Nobody reads."""


async def test_while_we_do_not_read_no_head_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a head waits for the answers before it. Behind too many requests, what comes is read and dropped:
    closing with bytes unread would reset the connection."""
    monkeypatch.setattr(http_heads, "HEAD_SECONDS", 0.0)
    monkeypatch.setattr(http_heads, "MOST_PIPELINED", 10)
    config = uvicorn.Config(Starlette(), log_config=None, lifespan="off", ws="none")
    config.load()
    transport = FakeTransport()
    protocol = http_heads.HastyProtocol(config, ServerState(), {}, at_once=None, heads={})
    protocol.connection_made(transport)
    whole = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    protocol.data_received(whole * 3 + whole[:9])
    assert not transport.reading
    protocol._late()
    assert not protocol._is_refused
    protocol.data_received(whole[9:] + whole * 20)
    assert protocol._is_refused
    assert (transport.reading, transport.closed) == (True, False)
    protocol.connection_lost(None)
    while protocol.tasks:
        await asyncio.wait(protocol.tasks)
