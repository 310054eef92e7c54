"""The server of HTTP on its own."""

from __future__ import annotations

import asyncio

import pytest
import uvicorn
from aemos_core.http_server import HttpServer, bound_socket
from aemos_core.process import PortInUse


async def test_a_server_that_ends_by_itself_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise its process would look alive, and serve nobody."""
    monkeypatch.setattr(uvicorn.Server, "main_loop", lambda _: asyncio.sleep(0))
    with bound_socket("127.0.0.1", 0, "AEMOS_TEST") as bound:
        await asyncio.wait_for(HttpServer(None, bound, 5).run(asyncio.Event()), 10)


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1"])
def test_a_port_that_cannot_be_had_is_named(host: str) -> None:
    """Somebody listens there, or the address is another machine's."""
    with bound_socket("127.0.0.1", 0, "AEMOS_TEST") as bound:
        port = bound.getsockname()[1]
        with pytest.raises(PortInUse, match="AEMOS_TEST"), bound_socket(host, port, "AEMOS_TEST"):
            pass
