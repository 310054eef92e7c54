"""python-socketio's server with bounded queues, and without the ways in that its clients should not have.

An override of python-socketio 5.18.1 and python-engineio 4.15.1. Private names: `AsyncServer._engineio_server_class`,
`_handle_eio_connect`, `_handle_eio_message`, `_handle_event`, `_trigger_event`'s lack of a guard for reserved events;
`AsyncManager.basic_disconnect`, `callbacks`, `pending_connect` and `pending_disconnect`; `AsyncSocket.poll` gets from
the queue only when all it got before is written, and `AsyncSocket.queue` comes from `create_queue`.
tests/unit/test_library_contract_socketio.py fails when one of them changes.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import engineio
import socketio
from websockets.frames import CloseCode

from aemos_notify.websocket import EXTENSION, DirectWebSocket, OutQueue

log = logging.getLogger("aemos.notify")

MAX_PAYLOAD_BYTES = 64 * 1024


class _Engine(engineio.AsyncServer):  # type: ignore[misc]
    def create_queue(self, *args: Any, **kwargs: Any) -> OutQueue:
        return OutQueue()


class _Manager(socketio.AsyncManager):  # type: ignore[misc]
    def basic_disconnect(self, sid: str, namespace: str, **kwargs: Any) -> None:
        """As the library's, which looks through all rooms, of which each client has one: who leaves together with 5,000
        others would stop everything for seconds."""
        for room in (None, sid):
            self.basic_leave_room(sid, namespace, room)
        self.callbacks.pop(sid, None)
        for pending in (self.pending_connect, self.pending_disconnect):
            if sid in pending.get(namespace, ()):
                pending[namespace].remove(sid)
                if not pending[namespace]:
                    del pending[namespace]


class SocketIoServer(socketio.AsyncServer):  # type: ignore[misc]
    """The server; handlers are registered with `on`, as with the library's."""

    def __init__(self) -> None:
        super().__init__(
            client_manager=_Manager(),
            async_mode="asgi",
            # Long polling would tie a client to one replica (sticky sessions) and cannot be written to directly.
            transports=["websocket"],
            # One event of a client at a time: who floods is not read any further.
            async_handlers=False,
            max_http_buffer_size=MAX_PAYLOAD_BYTES,
            # The token is in the CONNECT packet, never in a cookie: a foreign page has nothing to ride on.
            cors_allowed_origins="*",
            logger=_quiet("socketio.server"),
            engineio_logger=_quiet("engineio.server"),
        )

    def _engineio_server_class(self) -> type[_Engine]:
        return _Engine

    async def _handle_eio_connect(self, eio_sid: str, environ: dict[str, Any]) -> None:
        websocket = websocket_of(environ)
        websocket.waiting = self.eio.sockets[eio_sid].queue
        websocket.waiting.on_full = partial(websocket.end, CloseCode.TRY_AGAIN_LATER, "too slow")
        await super()._handle_eio_connect(eio_sid, environ)

    async def _handle_eio_message(self, eio_sid: str, data: Any) -> None:
        try:
            await super()._handle_eio_message(eio_sid, data)
        except Exception as error:
            log.info("a packet was not understood: %s", type(error).__name__)
            if environ := self.environ.get(eio_sid):
                websocket_of(environ).end(CloseCode.INVALID_DATA, "not a Socket.IO packet")

    async def _handle_event(self, eio_sid: str, namespace: str | None, id: int | None, data: Any) -> None:
        # The library would call the handlers of connect and disconnect with what a client sends under these names.
        if not (isinstance(data, list) and data and isinstance(data[0], str)) or data[0] in self.reserved_events:
            raise ValueError("not an event")
        await super()._handle_event(eio_sid, namespace, id, data)


def _quiet(name: str) -> logging.Logger:
    """A library's logger without its INFO records, which hold whole packets, tokens among them."""
    logger = logging.getLogger(name)
    logger.setLevel(logging.WARNING)
    return logger


def websocket_of(environ: dict[str, Any]) -> DirectWebSocket:
    """The connection behind the library's environment of it."""
    websocket: DirectWebSocket = environ["asgi.scope"]["extensions"][EXTENSION]
    return websocket
