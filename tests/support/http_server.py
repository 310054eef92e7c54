"""The gateway's own HTTP server, before any application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aemos_gateway.http_edge import http_edge

from tests.support.ports import free_port


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[int]:
    """The port where it serves this application."""
    port, stop = free_port(), asyncio.Event()
    async with http_edge("127.0.0.1", port, app, 5) as edge:
        running = asyncio.create_task(edge.run(stop))
        try:
            yield port
        finally:
            stop.set()
            await running
