"""HTTP connections that must say in time, and in few bytes, what they want.

An override of uvicorn 0.54.0: `HttpToolsProtocol.connection_made`, `connection_lost`, `data_received`,
`on_message_begin` and `on_headers_complete`; it reads `cycle.response_complete`. The time of a body is bounded by the
route that reads it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 8.0
HEAD_BYTES = 32 * 1024
LINGER_SECONDS = 0.5
_H2C = b"\r\nUpgrade: h2c\r\n"
"""Java's and curl's offer of HTTP/2: with it httptools would leave a request without its body."""


class HastyProtocol(HttpToolsProtocol):
    """Refuses a request whose head does not come within 8 s (408) and 32 KiB (431), and closes its connection.

    It also closes one on which, for 8 s, only what belongs to no request comes: blank lines, or the body of one that is
    answered. A request that comes in one piece costs three assignments; a timer is set for those that do not.
    """

    _deadline: asyncio.TimerHandle | None = None
    _is_in_head = True
    _head_bytes = 0
    _is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._is_in_head:
            self._head_bytes += len(data)
        super().data_received(data.replace(_H2C, b"\r\n"))
        if self._is_in_head:
            self._wait(self._late)
        elif self.cycle and self.cycle.response_complete:
            self._wait(self.transport.close)

    def on_message_begin(self) -> None:
        self._is_in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._head_bytes = 0
        if self._deadline is not None:
            self._arrived()
        super().on_headers_complete()

    def _wait(self, end: Callable[[], None]) -> None:
        if self._head_bytes > HEAD_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, end)

    def _late(self) -> None:
        self._refuse(b"408 Request Timeout")

    def _refuse(self, status: bytes) -> None:
        self.transport.write(b"HTTP/1.1 %b\r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % status)
        # Closed at once, what still arrives would be answered by a reset, and the client might not see why.
        self._is_refused = True
        self._arrived()
        self._deadline = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _arrived(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
