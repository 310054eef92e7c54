"""The port of Socket.IO: WebSocket only, and a clear word for everybody else."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from aemos_core.process import PortInUse
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from aemos_notify.socketio_edge import SocketIoEdge
from aemos_notify.websocket import MAX_PAYLOAD_BYTES

PATH = "/socket.io/"
_REQUEST_SECONDS = 10.0
_CLOSE_SECONDS = 2.0
_BACKLOG = 1024
# Errors of Engine.IO; a browser shows them to the developer.
_WEBSOCKET_ONLY = {
    "code": 0,
    "message": 'Transport unknown: this server speaks WebSocket only, set transports: ["websocket"]',
}
_OTHER_VERSION = {"code": 5, "message": "Unsupported protocol version: this server speaks to Socket.IO clients 3 and 4"}
_library_log = logging.getLogger("websockets.notify")
_library_log.setLevel(logging.CRITICAL)  # what a client sends instead of a request is no error of ours


class Listener:
    """A component: serves the edge on a bound socket, to at most `most_clients` at a time."""

    def __init__(self, edge: SocketIoEdge, bound: socket.socket, most_clients: int) -> None:
        self._edge = edge
        self._socket = bound
        self._most_clients = most_clients

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until told to stop, then closes every connection with 1012 (service restart)."""
        async with serve(
            self._edge.serve,
            sock=self._socket,
            backlog=_BACKLOG,
            process_request=self._refusal,
            open_timeout=_REQUEST_SECONDS,
            close_timeout=_CLOSE_SECONDS,
            max_size=MAX_PAYLOAD_BYTES,
            # 4 us a frame and a window of memory for each client, for texts of 200 bytes.
            compression=None,
            ping_interval=None,  # Engine.IO has pings of its own
            server_header=None,
            logger=_library_log,
        ):
            await stop.wait()
            self._edge.close()

    def _refusal(self, connection: ServerConnection, request: Request) -> Response | None:
        path, _, query = request.path.partition("?")
        if path != PATH:
            return _answer(connection, HTTPStatus.NOT_FOUND, {"message": "Socket.IO is at /socket.io/"})
        if "Upgrade" not in request.headers:
            return _answer(connection, HTTPStatus.BAD_REQUEST, _WEBSOCKET_ONLY)
        if "EIO=4" not in query.split("&"):
            return _answer(connection, HTTPStatus.BAD_REQUEST, _OTHER_VERSION)
        if self._edge.connections >= self._most_clients:
            return _answer(connection, HTTPStatus.SERVICE_UNAVAILABLE, {"message": "too many clients"})
        return None


def _answer(connection: ServerConnection, status: HTTPStatus, body: dict[str, object]) -> Response:
    response = connection.respond(status, json.dumps(body))
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = "application/json"
    response.headers["Access-Control-Allow-Origin"] = "*"
    return response


@contextmanager
def bound_socket(host: str, port: int, variable: str) -> Iterator[socket.socket]:
    """A listening socket; PortInUse names `variable` when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(port, variable) from None
        raise
    with bound:
        yield bound
