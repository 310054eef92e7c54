"""An ASGI application on a port: uvicorn in the loop of the process.

An override of uvicorn 0.54.0: `Server.capture_signals` does nothing. tests/unit/test_library_contract_socketio.py fails
when it changes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn

from aemos_core.http_heads import AtOnce, HastyProtocol
from aemos_core.process import PortInUse

_BACKLOG = 4096
"""Connections that the kernel holds until they are accepted: many clients come back at once."""


class _Server(uvicorn.Server):
    """uvicorn's own signal handling would end the process before the other components have finished."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to the process."""
        yield


class HttpServer:
    """A component: serves an ASGI application on a bound socket, and drains for `drain_seconds` at most.

    `at_once` is asked about a request that came as a whole before the application gets it; `options` are further ones
    of uvicorn.Config.
    """

    def __init__(
        self, app: Any, bound: socket.socket, drain_seconds: float, at_once: AtOnce | None = None, **options: Any
    ) -> None:
        config = uvicorn.Config(
            app,
            http=partial(HastyProtocol, at_once=at_once, heads={}),  # type: ignore[arg-type]
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=int(drain_seconds),
            **options,
        )
        self._server, self._socket = _Server(config), bound

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until told to stop, then closes WebSockets with 1012 (service restart) and finishes what was asked."""
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(self._server.serve([self._socket]))
            told = group.create_task(stop.wait())
            await asyncio.wait((serving, told), return_when=asyncio.FIRST_COMPLETED)
            told.cancel()
            self._server.should_exit = True


@contextmanager
def bound_socket(host: str, port: int, variable: str) -> Iterator[socket.socket]:
    """A listening TCP socket (port 0: a free one); PortInUse names `variable` when it cannot be had."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
            bound.listen(_BACKLOG)  # until then another process could bind it too
        except OSError:
            raise PortInUse(port, variable) from None
        yield bound
