"""uvicorn's WebSocket protocol with a direct way out, limits on what comes in, and an end that ends.

An override of uvicorn 0.54.0 (`WebSocketsSansIOProtocol`, with websockets 15). Private or undocumented names:
`handle_connect`, `handle_parser_exception`, `keepalive_timeout`, `send_receive_event_to_app`, `connection_lost`; the
attributes `scope`, `conn`, `queue`, `frames`, `transport`, `loop`, `writable`, `handshake_initiated`,
`handshake_complete`, `close_sent` and `disconnected`. tests/unit/test_library_contract_socketio.py fails when one of
them changes.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress
from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.frames import CloseCode
from websockets.http11 import Request

log = logging.getLogger("aemos.notify")

EXTENSION = "aemos.websocket"
"""Where the ASGI scope has the protocol object."""
QUEUED_PACKETS = 1_000
MESSAGES_PER_SECOND = 100
MESSAGES_AT_ONCE = 1_000
SESSION_SECONDS = 10.0
"""How long a connection may be without a Socket.IO session."""
_LINGER_SECONDS = 2.0
# Engine.IO 4: 1 close, 3 pong, 4 message. Socket.IO 5 in a message: 0 connect, 1 disconnect, 2 event. The library would
# take more, and lets a traceback out for what it cannot take; attachments (5, 6) it collects without a bound.
_ACCEPTED = re.compile(rb"[13]\Z|4[012]")


class Allowance:
    """So many messages a second, and so many at once after a rest."""

    def __init__(self, per_second: float, at_once: float, now: float) -> None:
        self._per_second, self._at_once = per_second, at_once
        self._left, self._at = at_once, now

    def take(self, now: float) -> bool:
        """Whether one more is allowed at `now` (seconds, monotonic)."""
        self._left = min(self._at_once, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class OutQueue(asyncio.Queue[Any]):
    """What waits for one slow client. It never makes anybody wait: what does not fit is dropped, with its client.

    `idle` is true while the library's writer waits here, with nothing in its hands: only then may a frame go past the
    queue without overtaking what went before it.
    """

    on_full: Callable[[], None] = staticmethod(lambda: None)
    idle = False

    async def get(self) -> Any:
        self.idle = True
        try:
            return await super().get()
        finally:
            self.idle = False

    async def put(self, item: Any) -> None:
        # None is the library's word for the end: without it neither its writer nor its reader would ever finish.
        if item is None:
            self.put_nowait(None)
        else:
            self.offer([item])

    def offer(self, packets: Sequence[Any]) -> None:
        """Takes all of the packets or none."""
        if self.qsize() + len(packets) > QUEUED_PACKETS:
            self.on_full()
            return
        for packet in packets:
            self.put_nowait(packet)

    @property
    def may_be_passed(self) -> bool:
        """Whether a frame written now comes after everything that was put here."""
        return self.idle and self.empty()


class DirectWebSocket(WebSocketsSansIOProtocol):
    """A connection that takes whole frames in one call, and that anybody may end."""

    waiting: OutQueue
    """What the server's writer has not written yet."""
    _without_session: asyncio.TimerHandle | None = None

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.handshake_initiated and not self.close_sent:
            extensions: MutableMapping[str, Any] = self.scope["extensions"] or {}
            extensions[EXTENSION] = self
            self._allowance = Allowance(MESSAGES_PER_SECOND, MESSAGES_AT_ONCE, self.loop.time())
            self.session_ended(SESSION_SECONDS)

    def write_frame(self, frames: bytes) -> bool:
        """Writes complete frames at once; False when the client is slow or leaving: use the queue then."""
        if self.leaving or not self.handshake_complete or not self.writable.is_set():
            return False
        self.transport.write(frames)
        return True

    @property
    def leaving(self) -> bool:
        """The connection is ending or has ended."""
        return bool(self.close_sent or self.disconnected)

    def session_began(self) -> None:
        """The client has proved who it is: the connection may stay."""
        if self._without_session is not None:
            self._without_session.cancel()

    def session_ended(self, seconds: float) -> None:
        """The connection ends after so many seconds unless a session begins."""
        self.session_began()
        self._without_session = self.loop.call_later(seconds, self.end, CloseCode.POLICY_VIOLATION, "no session")

    def end(self, code: int, reason: str) -> None:
        """Closes with a code of RFC 6455, 7.4. What the client does not read is thrown away after 2 s."""
        if self.leaving:
            return
        log.info("client closed: %s", reason)
        self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        with suppress(InvalidState):
            self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.close()
        self._abort_later()

    def send_receive_event_to_app(self) -> None:
        data = b"".join(self.frames)
        if not self._allowance.take(self.loop.time()):
            self._refuse(CloseCode.POLICY_VIOLATION, "too many messages")
        elif not (_ACCEPTED.match(data) and _is_utf8(data)):
            self._refuse(CloseCode.INVALID_DATA, "not a Socket.IO message")
        else:
            super().send_receive_event_to_app()

    def _refuse(self, code: int, reason: str) -> None:
        self.frames = []
        self.end(code, reason)

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.close":
            self._abort_later()

    def handle_parser_exception(self) -> None:
        super().handle_parser_exception()
        self._abort_later()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._abort_later()

    def connection_lost(self, exc: Exception | None) -> None:
        self.session_began()
        super().connection_lost(exc)

    def _abort_later(self) -> None:
        """A closing transport waits for a peer that does not read, for ever."""
        self.loop.call_later(_LINGER_SECONDS, self.transport.abort)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
