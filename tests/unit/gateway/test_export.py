"""The export: whole, quoted, packed when asked for, in flat memory, and cut where it cannot go on."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from aemos_core.errors import not_found, unavailable
from aemos_gateway.export import PATH
from fastapi import FastAPI

from tests.support.fake_history import VALUES, FakeHistory, export_app

pytestmark = pytest.mark.asyncio


class Got:
    """An answer as ASGI gives it; `whole` when its last chunk came."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.size = self.chunks = 0
        self.body = bytearray()
        self.whole = False


async def get(
    history: FakeHistory | FastAPI,
    query: str,
    take: Callable[[Got, bytes], None] | None = None,
    method: str = "GET",
    **headers: str,
) -> Got:
    app, got = history if isinstance(history, FastAPI) else export_app(history), Got()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            got.status = message["status"]
            got.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            return
        got.chunks += 1
        (take or (lambda got, body: got.body.extend(body)))(got, message.get("body", b""))
        got.whole = not message.get("more_body", False)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    sent = {"authorization": "Bearer x", **headers}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": query.encode(),
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in sent.items()],
        "server": ("test", 80),
        "client": ("test", 1),
    }
    await app(scope, receive, send)
    return got


async def test_ndjson_is_a_line_for_each_reading() -> None:
    """In order, with every field, as the REST JSON spells them; for the caller's organization."""
    history = FakeHistory(3)
    got = await get(history, "sensorUuid=s&sensorUuid=r&variableName=t&from=2023-01-01T00:00:00Z&order=desc")
    lines = [json.loads(line) for line in got.body.decode().split("\n")[:-1]]
    assert (got.status, got.whole) == (200, True)
    assert [line["id"] for line in lines] == list(range(1_500))
    assert lines[1] == {
        "recievedAt": "2023-11-14T22:13:20.123Z",
        "sensorUuid": "s",
        "variableName": "t",
        "value": VALUES[1],
        "id": 1,
        "telemetryDataId": 7,
    }
    asked = history.asked[0]
    assert (asked.organization_id, asked.query.order) == (4, "desc")
    assert list(asked.query.sensor_uuid) == ["s", "r"]
    assert asked.query.HasField("to")


async def test_csv_has_a_header_and_quotes_what_needs_it() -> None:
    """A reader of RFC 4180 gets back what was sent, line ends within values too."""
    got = await get(FakeHistory(2), "sensorUuid=s&format=csv")
    head, *rows = list(csv.reader(io.StringIO(got.body.decode(), newline="")))
    assert head == ["recievedAt", "sensorUuid", "variableName", "value", "id", "telemetryDataId"]
    assert [row[3] for row in rows] == list(VALUES) * 200
    assert got.headers["content-type"].startswith("text/csv")
    assert got.headers["content-disposition"] == 'attachment; filename="readings.csv"'


async def test_gzip_when_accepted() -> None:
    """The same bytes, packed."""
    plain = await get(FakeHistory(3), "sensorUuid=s")
    packed = await get(FakeHistory(3), "sensorUuid=s", accept_encoding="br, gzip")
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert zlib.decompress(bytes(packed.body), wbits=31) == bytes(plain.body)
    assert len(packed.body) < len(plain.body) / 5


async def test_memory_is_flat() -> None:
    """Thirty times as many readings take no more of it."""

    def count(got: Got, body: bytes) -> None:
        got.size += len(body)

    peaks = []
    for pages in (4, 4, 120):
        tracemalloc.start()
        got = await get(FakeHistory(pages), "sensorUuid=s&format=csv", count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert got.whole
        assert got.chunks > pages
    assert peaks[2] < peaks[1] * 1.3 + 100_000


@pytest.mark.parametrize("packed", [{}, {"accept_encoding": "gzip"}])
async def test_what_cannot_go_on_is_cut(packed: dict[str, str]) -> None:
    """The last chunk never comes, so the server closes the connection, and a client sees that the file is not whole."""
    got = await get(FakeHistory(2, unavailable("the database did not answer")), "sensorUuid=s", **packed)
    assert got.status == 200
    assert not got.whole


@pytest.mark.parametrize(
    ("query", "loc"),
    [
        ("format=xml&sensorUuid=s", "format"),
        ("sensorUuid=s&pageToken=1-1", "pageToken"),
        ("sensorUuid=s&interval=1h&aggregate=avg", "aggregate"),
        ("sensorUuid=s&colour=red", "colour"),
        ("sensorUuid=s&from=yesterday", "from"),
    ],
)
async def test_a_wrong_request_is_answered_as_such(query: str, loc: str) -> None:
    """422 with the place, not a broken file."""
    got = await get(FakeHistory(1), query)
    assert got.status == 422
    assert loc in [error["loc"] for error in json.loads(got.body)["errors"]]


async def test_what_the_first_page_refuses_is_a_problem() -> None:
    """An unknown sensor is 404."""
    got = await get(FakeHistory(0, not_found("sensor")), "sensorUuid=nowhere")
    assert got.status == 404


async def test_eight_are_under_way_at_most() -> None:
    """Whoever comes while the others wait for their first page hears so, and all end."""
    app = export_app(FakeHistory(2))
    got = await asyncio.gather(*(get(app, "sensorUuid=s") for _ in range(20)))
    assert sorted(one.status for one in got) == [200] * 8 + [429] * 12
    assert app.state.export.under_way == 0


async def test_head_reads_one_page() -> None:
    """Its answer has no body, so the rest is not read; the headers are those of GET."""
    app = export_app(FakeHistory(50))
    got = await get(app, "sensorUuid=s&format=csv", method="HEAD")
    plain = await get(FakeHistory(1), "sensorUuid=s&format=csv")
    assert (got.status, got.headers, got.chunks) == (200, plain.headers, plain.chunks)
    assert app.state.export.under_way == 0
