"""HTTP connections that must say in time, and in few bytes, what they want.

An override of uvicorn 0.54.0: `HttpToolsProtocol.connection_made`, `connection_lost`, `data_received`,
`on_message_begin` and `on_headers_complete`; what is sent after its head is bounded by the routes.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 8.0
HEAD_BYTES = 64 * 1024


class HastyProtocol(HttpToolsProtocol):
    """Closes a connection whose first or next request has not had its head for 8 s, or not within 64 KiB.

    A request that comes in one piece costs two assignments; a timer is set for those that do not.
    """

    _deadline: asyncio.TimerHandle | None = None
    _is_in_head = True
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEAD_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_in_head:
            self._wait(len(data))
        elif self._deadline is not None:
            self._arrived()

    def on_message_begin(self) -> None:
        self._is_in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()

    def _wait(self, received: int) -> None:
        self._head_bytes += received
        if self._head_bytes > HEAD_BYTES:
            self.transport.abort()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _arrived(self) -> None:
        self._head_bytes = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
