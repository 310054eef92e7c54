"""What the port of Socket.IO answers: WebSocket only, and a clear word for everybody else."""

from __future__ import annotations

import json
from typing import Any

from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from aemos_notify.socketio_server import MAX_PAYLOAD_BYTES, SocketIoServer
from aemos_notify.websocket import DirectWebSocket

PATH = "/socket.io/"
UVICORN_OPTIONS: dict[str, Any] = {
    "ws": DirectWebSocket,
    "ws_max_size": MAX_PAYLOAD_BYTES,
    # 4 us a frame and a window of memory for each client, for texts of 200 bytes.
    "ws_per_message_deflate": False,
}
"""What the server of this application is to know of WebSocket."""
# The form of Engine.IO's own errors; a browser shows it to the developer, if it may read the answer at all.
_WEBSOCKET_ONLY = json.dumps(
    {"code": 0, "message": 'Transport unknown: this server speaks WebSocket only, set transports: ["websocket"]'}
).encode()
_HEADERS = [
    (b"content-type", b"application/json"),
    (b"access-control-allow-origin", b"*"),
    (b"connection", b"close"),
]


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
