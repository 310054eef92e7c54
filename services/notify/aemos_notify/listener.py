"""The port of Socket.IO: uvicorn in our own loop, WebSocket only, and a clear word for everybody else.

An override of uvicorn 0.54.0: `Server.capture_signals` does nothing (signals are the process's), and
`HttpToolsProtocol.connection_made`, `data_received`, `handle_websocket_upgrade`, `transport` and `loop` bound how long
and how much a client may talk before its request is whole. tests/unit/test_library_contract_socketio.py fails when they
change.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from aemos_core.process import PortInUse
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from aemos_notify.socketio_server import MAX_PAYLOAD_BYTES, SocketIoServer
from aemos_notify.websocket import DirectWebSocket

PATH = "/socket.io/"
_REQUEST_SECONDS = 10.0
_REQUEST_BYTES = 32 * 1024
_GRACE_SECONDS = 5
# The form of Engine.IO's own errors; a browser shows it to the developer, if it may read the answer at all.
_WEBSOCKET_ONLY = json.dumps(
    {"code": 0, "message": 'Transport unknown: this server speaks WebSocket only, set transports: ["websocket"]'}
).encode()
_HEADERS = [
    (b"content-type", b"application/json"),
    (b"access-control-allow-origin", b"*"),
    (b"connection", b"close"),
]
Respond = Callable[[str, int, bytes], Awaitable[None]]


class SocketIoApp:
    """The ASGI application: WebSocket connections for the Socket.IO server, at most `most_clients` at a time."""

    def __init__(self, server: SocketIoServer, most_clients: int) -> None:
        self._server = server
        self._most_clients = most_clients

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "lifespan":
            return
        if scope["path"] != PATH:
            await _respond(scope, send, 404, b'{"message": "Socket.IO is at /socket.io/"}')
        elif scope["type"] == "http":
            await _respond(scope, send, 400, _WEBSOCKET_ONLY)
        elif len(self._server.eio.sockets) >= self._most_clients:
            await _respond(scope, send, 503, b'{"message": "too many clients"}')
        else:
            await self._server.handle_request(scope, receive, send)


async def _respond(scope: Scope, send: Any, status: int, body: bytes) -> None:
    kind = "http" if scope["type"] == "http" else "websocket.http"
    await send({"type": f"{kind}.response.start", "status": status, "headers": _HEADERS})
    await send({"type": f"{kind}.response.body", "body": body})


class _HttpProtocol(HttpToolsProtocol):
    """Answers one request a connection, which is to arrive whole within 10 s and 32 KiB."""

    _received = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline = self.loop.call_later(_REQUEST_SECONDS, self._hurry, transport)

    def handle_websocket_upgrade(self) -> None:
        self._deadline.cancel()  # it would keep all that the request was, 5 KB a client
        super().handle_websocket_upgrade()

    def _hurry(self, transport: asyncio.Transport) -> None:
        if transport.get_protocol() is self:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > _REQUEST_BYTES:
            self.transport.abort()
        else:
            super().data_received(data)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Listener:
    """A component: serves an application on a bound socket."""

    def __init__(self, app: SocketIoApp, bound: socket.socket) -> None:
        self._socket = bound
        self._server = _Server(
            uvicorn.Config(
                app,
                http=_HttpProtocol,
                ws=DirectWebSocket,
                ws_max_size=MAX_PAYLOAD_BYTES,
                # 4 us a frame and a window of memory for each client, for texts of 200 bytes.
                ws_per_message_deflate=False,
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until told to stop, then closes every connection with 1012 (service restart)."""
        serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        self._server.should_exit = True
        await serving


@contextmanager
def bound_socket(host: str, port: int, variable: str) -> Iterator[socket.socket]:
    """A listening socket; PortInUse names `variable` when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(port, variable) from None
        raise
    with bound:
        yield bound
