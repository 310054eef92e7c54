"""An export over a real socket: what is cut short is seen to be."""

from __future__ import annotations

import asyncio
import http.client

import pytest
from aemos_core.errors import unavailable
from aemos_gateway.export import PATH

from tests.support.fake_history import FakeHistory, export_app
from tests.support.http_server import serving
from tests.support.redis_server import until

pytestmark = pytest.mark.asyncio


def opened(port: int, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    sent = {"Authorization": "Bearer x", **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection.request("GET", f"{PATH}?sensorUuid=s", headers=sent)
    return connection.getresponse()


async def served(history: FakeHistory, **headers: str) -> bytes:
    """What a client reads of an export of this history."""
    async with serving(export_app(history)) as port:
        return await asyncio.to_thread(lambda: opened(port, **headers).read())


async def test_an_export_of_many_pages_is_whole() -> None:
    """A client reads to its end."""
    assert (await served(FakeHistory(20))).count(b"\n") == 10_000


@pytest.mark.parametrize("headers", [{}, {"Accept_Encoding": "gzip"}])
async def test_an_export_that_is_cut_short_is_not_taken_for_whole(headers: dict[str, str]) -> None:
    """The connection ends within the answer, which a client says."""
    with pytest.raises(http.client.IncompleteRead):
        await served(FakeHistory(20, unavailable("the database did not answer")), **headers)


@pytest.mark.parametrize("headers", [{}, {"Accept_Encoding": "gzip"}])
async def test_an_export_that_nobody_reads_any_more_ends(headers: dict[str, str]) -> None:
    """Though there is no end of readings; and its place is free for another."""
    app = export_app(FakeHistory(10**9))
    async with serving(app) as port:
        answer = await asyncio.to_thread(opened, port, **headers)
        await asyncio.to_thread(answer.read, 10_000)
        assert app.state.export.under_way == 1
        answer.close()
        await until(lambda: app.state.export.under_way == 0, 10)
