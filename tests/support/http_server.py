"""The HTTP server of the services, before any application."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aemos_core.http_heads import AtOnce
from aemos_core.http_server import HttpServer, bound_socket


@asynccontextmanager
async def serving(app: Any, at_once: AtOnce | None = None) -> AsyncIterator[int]:
    """The port where it serves this application."""
    stop = asyncio.Event()
    with bound_socket("127.0.0.1", 0, "AEMOS_HTTP_PORT") as bound:
        running = asyncio.create_task(HttpServer(app, bound, 5, at_once, ws="none").run(stop))
        try:
            yield bound.getsockname()[1]
        finally:
            stop.set()
            await running


async def next_answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of the next answer of a connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    return head, await reader.readexactly(int(length[1]))
