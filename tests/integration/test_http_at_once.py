"""Readings over real sockets: a request that came as a whole is answered without a task, and as any other is."""

from __future__ import annotations

import asyncio
import gzip
import re
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from aemos_core import http_heads
from aemos_core.errors import AemosError, Kind, invalid
from aemos_core.http_heads import Answer, Take
from aemos_gateway.http_edge import IngestRoute
from fastapi import FastAPI
from starlette.types import Scope

from tests.support.fake_coap import TOKEN, FakeAuth, FakeUplink
from tests.support.http_server import next_answer, serving
from tests.support.redis_server import until

pytestmark = pytest.mark.asyncio
GOOD = b'{"variableName": "temperature", "value": 1}'
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Route(IngestRoute):
    """Notes what it was asked to take at once, what it took, and how many heads were parsed for it."""

    def __init__(self, uplink: FakeUplink, *, warm: bool = True) -> None:
        self.auth = FakeAuth(warm=warm)
        super().__init__(self.auth, uplink, FastAPI())
        self.parsed = 0
        self.taken: list[bool] = []
        self.asked: list[Any] = []

    def at_once(self, scope: Scope) -> Take | None:
        self.parsed += 1
        return super().at_once(scope)

    def take(self, token: bytes, most: int, body: bytes, answer: Answer) -> bool:
        self.asked += getattr(answer, "args", ())  # uvicorn's cycle of request and response
        self.taken.append(super().take(token, most, body, answer))
        return self.taken[-1]


def head(length: int, *headers: bytes, token: bytes = TOKEN, query: bytes = b"") -> bytes:
    """Of a POST of a reading."""
    lines = [b"Host: a", b"Authorization: Bearer " + token, b"Content-Length: %d" % length, *headers]
    return b"POST /api/v1/datastreams/token%b HTTP/1.1\r\n%b\r\n\r\n" % (query, b"\r\n".join(lines))


@asynccontextmanager
async def connected(route: Route) -> AsyncIterator[Connection]:
    """A connection to a server of it."""
    async with serving(route, route.at_once) as port, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.close()


@asynccontextmanager
async def connected_to(other: Connection) -> AsyncIterator[Connection]:
    """One more connection to the server of this one."""
    reader, writer = await asyncio.open_connection(*other[1].get_extra_info("peername"))
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    """The next answer, but for its date."""
    return re.sub(rb"date: [^\r]*\r\n", b"", b"".join(await next_answer(reader)))


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        (GOOD, None),
        (b"{}", None),
        (b"{", None),
        (GOOD, invalid("variableName", "none", "unknown_variable")),
        (GOOD, AemosError(Kind.BUSY, "too many", retry_after=3)),
    ],
    ids=["stored", "invalid", "malformed", "refused by ingest", "limited"],
)
async def test_whole_or_in_parts_the_answer_is_the_same(body: bytes, refusal: AemosError | None) -> None:
    """And so is what is recorded of a refusal; the connection goes on."""
    uplink = FakeUplink()
    uplink.refusal = refusal
    route = Route(uplink)
    async with connected(route) as (reader, writer):
        writer.write(head(len(body)) + body)
        whole = await answer_of(reader)
        refused = list(uplink.refused.all)
        writer.write(head(len(body), b"Expect: 100-continue"))
        assert await reader.readexactly(len(CONTINUE)) == CONTINUE
        writer.write(body)
        parts = await answer_of(reader)
    assert route.taken == [True]
    assert re.sub(rb'"(id|recievedAt)":[^,}]*', b"", whole) == re.sub(rb'"(id|recievedAt)":[^,}]*', b"", parts)
    assert uplink.refused.all == refused * 2


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (head(len(GOOD), token=b"unknown") + GOOD, b"401"),
        (head(len(GOOD), query=b"?partial=yes") + GOOD, b"422"),
        (head(70_000) + b" " * 70_000, b"413"),
        (head(len(gzip.compress(GOOD, mtime=0)), b"Content-Encoding: gzip") + gzip.compress(GOOD, mtime=0), b"201"),
        (b"GET /api/v1/datastreams/token HTTP/1.1\r\nHost: a\r\n\r\n", b"405"),
    ],
    ids=["unknown token", "query", "too large", "gzip", "another method"],
)
async def test_what_must_wait_or_is_wrong_before_its_body_goes_the_usual_way(sent: bytes, status: bytes) -> None:
    """With the answer that it always had."""
    route = Route(FakeUplink())
    async with connected(route) as (reader, writer):
        writer.write(sent)
        assert (await answer_of(reader)).split()[1] == status
    assert not any(route.taken)


async def test_the_first_request_of_a_token_asks_who_it_is() -> None:
    """The second one knows."""
    route = Route(FakeUplink(), warm=False)
    async with connected(route) as (reader, writer):
        for _ in range(2):
            writer.write(head(len(GOOD)) + GOOD)
            assert (await answer_of(reader)).split()[1] == b"201"
    assert route.taken == [False, True]


async def know(connection: Connection) -> None:
    """Makes the head of GOOD a known one."""
    reader, writer = connection
    writer.write(head(len(GOOD)) + GOOD)
    assert (await answer_of(reader)).split()[1] == b"201"


@pytest.mark.parametrize("is_known", [False, True])
async def test_requests_in_a_row_are_answered_in_order(is_known: bool) -> None:
    """Sent in one piece, the second waits for the first, and nothing of it is lost."""
    uplink = FakeUplink()
    route = Route(uplink)
    async with connected(route) as (reader, writer):
        if is_known:
            await know((reader, writer))
        uplink.held = True
        uplink.readings.clear()
        bodies = [GOOD.replace(b"1", b"%d" % value) for value in (7, 8, 9)]
        writer.write(b"".join(head(len(body)) + body for body in bodies))
        await until(lambda: bool(uplink.readings), 10)
        assert len(uplink.readings) == 1
        uplink.held = False
        uplink.release()
        values = [re.findall(rb'"value":(\d)', await answer_of(reader)) for _ in bodies]
    assert values == [[b"7"], [b"8"], [b"9"]]


async def test_a_known_head_waits_for_the_answer_before_it() -> None:
    """It came by itself, while another request was under way."""
    uplink = FakeUplink()
    route = Route(uplink)
    async with connected(route) as (reader, writer):
        await know((reader, writer))
        uplink.held = True
        uplink.readings.clear()
        writer.write(head(len(GOOD)) + GOOD.replace(b"1", b"7"))
        await until(lambda: bool(uplink.readings), 10)
        writer.write(head(len(GOOD)) + GOOD.replace(b"1", b"8"))
        await until(lambda: bool(route.asked[1].flow.read_paused), 10, "a second request: it reads no further")
        assert len(uplink.readings) == 1
        uplink.held = False
        uplink.release()
        values = [re.findall(rb'"value":(\d)', await answer_of(reader)) for _ in range(2)]
    assert values == [[b"7"], [b"8"]]


async def test_who_asks_for_the_end_of_the_connection_gets_it() -> None:
    """After the answer, which says so; with a head that was seen before too."""
    route = Route(FakeUplink())
    async with connected(route) as first:
        for reader, writer in (first, await asyncio.open_connection(*first[1].get_extra_info("peername"))):
            writer.write(head(len(GOOD), b"Connection: close") + GOOD)
            assert b"\r\nconnection: close\r\n" in await answer_of(reader)
            assert await reader.read() == b""
            writer.close()
    assert route.taken == [True] * 2


@pytest.mark.parametrize("is_known", [False, True])
async def test_who_left_before_the_commit_disturbs_nobody(is_known: bool) -> None:
    """The reading is stored all the same; its answer goes nowhere."""
    uplink = FakeUplink()
    route = Route(uplink)
    with failing_loudly() as failures:
        async with connected(route) as (reader, writer):
            if is_known:
                await know((reader, writer))
            uplink.held = True
            uplink.readings.clear()
            writer.write(head(len(GOOD)) + GOOD)
            await until(lambda: bool(uplink.readings), 10)
            reset = struct.pack("ii", 1, 0)  # closing without it could be a client that says no more and still reads
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            writer.transport.abort()
            await until(lambda: route.asked[-1].disconnected, 10)
            uplink.release()
    assert failures == []


async def test_a_head_that_was_taken_is_not_parsed_again() -> None:
    """On any connection; each answer is of its own body. A body of another length has another head."""
    route = Route(FakeUplink())
    async with connected(route) as first:
        await know(first)
        async with connected_to(first) as second:
            for value, (reader, writer) in enumerate((first, second, second)):
                writer.write(head(len(GOOD)) + GOOD.replace(b"1", b"%d" % value))
                assert b'"value":%d' % value in await answer_of(reader)
        assert (route.parsed, route.taken) == (1, [True] * 4)
        longer = GOOD.replace(b"1", b"100")
        first[1].write(head(len(longer)) + longer)
        assert b'"value":100' in await answer_of(first[0])
    assert (route.parsed, route.taken) == (2, [True] * 5)


async def protocol_of(route: Route, uplink: FakeUplink, connection: Connection) -> http_heads.HastyProtocol:
    """The server's side of a connection, on which a known head was answered; while it was under way no timer ran."""
    reader, writer = connection
    await know(connection)
    uplink.held = True
    writer.write(head(len(GOOD)) + GOOD)
    await until(lambda: len(route.asked) == 2, 10)
    protocol: http_heads.HastyProtocol = route.asked[1].on_response.__self__
    assert protocol.timeout_keep_alive_task is None
    uplink.held = False
    uplink.release()
    await answer_of(reader)
    return protocol


@pytest.mark.parametrize("is_first", [False, True])
async def test_a_known_head_within_another_one_is_no_request(is_first: bool) -> None:
    """It is a header of the one that began before, on a new connection as on an old one."""
    uplink = FakeUplink()
    route = Route(uplink)
    async with connected(route) as old:
        protocol = await protocol_of(route, uplink, old)
        async with connected_to(old) as new:
            await until(lambda: len(protocol.connections) == 2, 10)
            (other,) = protocol.connections - {protocol}
            reader, writer = new if is_first else old
            writer.write(b"GET /nowhere HTTP/1.1\r\nX: ")
            await until(lambda: bool(other._head_bytes) if is_first else protocol._is_in_head, 10)
            writer.write(head(len(GOOD)) + GOOD)
            assert (await answer_of(reader)).split()[1] == b"404"
    assert len(route.taken) == 2


async def test_who_does_not_read_gets_no_answer_at_once() -> None:
    """Only a task can wait until there is room for it."""
    uplink = FakeUplink()
    route = Route(uplink)
    async with connected(route) as connection:
        protocol = await protocol_of(route, uplink, connection)
        uplink.readings.clear()
        protocol.flow.pause_writing()
        connection[1].write(head(len(GOOD)) + GOOD)
        await until(lambda: bool(uplink.readings), 10)
        protocol.flow.resume_writing()
        assert (await answer_of(connection[0])).split()[1] == b"201"
    assert len(route.taken) == 2


async def test_a_known_head_within_a_body_is_no_request() -> None:
    """Nor when the one whose body it is was answered before."""
    uplink = FakeUplink()
    route = Route(uplink)
    known = head(len(GOOD)) + GOOD
    async with connected(route) as (reader, writer):
        await know((reader, writer))
        writer.write(head(len(known), token=b"unknown"))
        assert (await answer_of(reader)).split()[1] == b"401"
        (cycle,) = route.asked
        protocol = cycle.flow._transport.get_protocol()
        writer.write(known)
        await until(lambda: protocol._deadline is not None or len(route.taken) > 1, 10, "it has come")
    assert len(route.taken) == 1


async def test_a_known_head_is_good_only_while_its_token_is() -> None:
    """Revoked, it gets what any unknown one does."""
    route = Route(FakeUplink())
    async with connected(route) as (reader, writer):
        await know((reader, writer))
        route.auth.revoke(TOKEN)
        for _ in range(2):
            writer.write(head(len(GOOD)) + GOOD)
            assert (await answer_of(reader)).split()[1] == b"401"


CHUNKED = b"POST /api/v1/datastreams/token HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n%b\r\n" % (
    TOKEN,
    b"Transfer-Encoding: chunked\r\n",
)


async def test_a_head_says_where_its_body_ends() -> None:
    """In chunks it does not, so such a head is parsed each time; a known one may come without its body."""
    route = Route(FakeUplink())
    async with connected(route) as (reader, writer):
        for values in (b"123456789012", b"1"):  # the chunk of the second is as long as the body of the first
            body = GOOD.replace(b"1", values)
            writer.write(CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            assert b'"value":%b,' % values in await answer_of(reader)
        assert route.parsed == 2
        expecting = head(len(GOOD), b"Expect: 100-continue")
        writer.write(expecting + GOOD)
        assert (await answer_of(reader)).split()[1] == b"201"
        writer.write(expecting)
        assert await reader.readexactly(len(CONTINUE)) == CONTINUE
        writer.write(GOOD)
        assert (await answer_of(reader)).split()[1] == b"201"
        await know((reader, writer))


async def test_a_server_knows_no_more_heads_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins again with none; long ones it does not keep."""
    monkeypatch.setattr(http_heads, "KNOWN_HEADS", 2)
    route = Route(FakeUplink())
    async with connected(route) as (reader, writer):
        for name in (b"A", b"B", b"C", b"A", b"A", b"L" * 2000, b"L" * 2000):
            writer.write(head(len(GOOD), b"%b: x" % name) + GOOD)
            assert (await answer_of(reader)).split()[1] == b"201"
    assert route.parsed == 6


@pytest.mark.parametrize(
    "more",
    [b"\0", head(len(GOOD))[:20], b"GET / HTTP/1.1\r\nX: " + b"1" * 40_000],
    ids=["garbage", "half a head", "too long a head"],
)
@pytest.mark.parametrize("is_known", [False, True])
async def test_what_is_wrong_behind_a_request_is_no_answer_to_it(
    monkeypatch: pytest.MonkeyPatch, more: bytes, is_known: bool
) -> None:
    """A client would take it for one, and send again what is stored. It ends the connection, after the answer."""
    monkeypatch.setattr(http_heads, "HEAD_SECONDS", 0.1)
    uplink = FakeUplink()
    route = Route(uplink)
    async with connected(route) as (reader, writer):
        if is_known:
            await know((reader, writer))
        uplink.held = True
        uplink.readings.clear()
        for piece in (head(len(GOOD)) + GOOD, more) if is_known else (head(len(GOOD)) + GOOD + more,):
            writer.write(piece)
            await until(lambda: bool(uplink.readings), 10)
        await until(lambda: not route.asked[-1].keep_alive, 10)
        uplink.release()
        assert (await reader.read()).count(b"HTTP/1.1 201 Created") == 1


@contextmanager
def failing_loudly() -> Iterator[list[object]]:
    """What the loop had to report meanwhile."""
    loop, failures = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: failures.append(context))
    try:
        yield failures
    finally:
        loop.set_exception_handler(None)
