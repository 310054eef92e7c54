"""A connection of Engine.IO 4, WebSocket only: written to directly, bounded in what it may say and leave unread.

Not python-socketio's server: it spends a task and a queue entry on each delivery (40 us, here 7), has no bound for who
does not read, and took more overrides of private names than what is left of the protocol takes lines. Beside its public
interface this touches `protocol`, `transport`, `paused`, `drain` and `send_data` of websockets 15's `ServerConnection`;
tests/unit/test_library_contract_websockets.py fails when they change.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed, InvalidState
from websockets.frames import CloseCode
from websockets.protocol import State

from aemos_notify.rooms import Event, frame

log = logging.getLogger("aemos.notify")

MAX_PAYLOAD_BYTES = 64 * 1024
MOST_UNREAD = 1_000
"""Messages that a client has not read."""
MESSAGES_PER_SECOND = 100
MESSAGES_AT_ONCE = 1_000
SESSION_SECONDS = 10.0
"""How long a connection may be without a Socket.IO session."""
_PING_SECONDS, _PONG_SECONDS = 25, 20
_LINGER_SECONDS = 2.0
# Packet types of Engine.IO 4; a message begins with "4".
_OPEN, _PING, _PONG = "0", "2", "3"


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


class Unread:
    """Counts the messages that make up what waits in a connection's buffer; asked only while it is behind."""

    def __init__(self) -> None:
        self._written: deque[tuple[int, int]] = deque()
        self._bytes = self._count = 0

    def add(self, size: int, count: int, waiting: int) -> int:
        """How many wait when `count` messages of `size` bytes follow the `waiting` bytes that are there."""
        self._written.append((size, count))
        self._bytes += size
        self._count += count
        while self._bytes - self._written[0][0] >= waiting + size:
            oldest_size, oldest_count = self._written.popleft()
            self._bytes -= oldest_size
            self._count -= oldest_count
        return self._count


class Connection:
    """Takes whole frames in one call, and anybody may end it. Nothing here waits for the peer but `pour`."""

    def __init__(self, websocket: ServerConnection) -> None:
        self.sid = secrets.token_urlsafe(15)
        self._websocket = websocket
        self._protocol, self._transport = websocket.protocol, websocket.transport
        self._loop = asyncio.get_running_loop()
        self._allowance = Allowance(MESSAGES_PER_SECOND, MESSAGES_AT_ONCE, self._loop.time())
        self._unread = Unread()
        self._is_heard = True
        self._pinging = self._loop.call_later(_PING_SECONDS, self._ping)
        self._without_session = self._loop.call_later(SESSION_SECONDS, self._no_session)
        timing = {"pingInterval": _PING_SECONDS * 1000, "pingTimeout": _PONG_SECONDS * 1000}
        opened = {"sid": self.sid, "upgrades": [], **timing, "maxPayload": MAX_PAYLOAD_BYTES}
        self.write(frame(_OPEN + json.dumps(opened)))

    @property
    def leaving(self) -> bool:
        """The connection is ending or has ended."""
        return self._protocol.state is not State.OPEN

    def write(self, frames: bytes, count: int = 1) -> None:
        """Writes `count` complete frames at once. Who has not read 1,000 of them loses the connection."""
        if self._protocol.state is not State.OPEN:
            return
        if self._websocket.paused:
            waiting = self._transport.get_write_buffer_size()
            if self._unread.add(len(frames), count, waiting) > MOST_UNREAD:
                self.end(CloseCode.TRY_AGAIN_LATER, "too slow")
                return
        self._transport.write(frames)

    async def pour(self, event: Event) -> None:
        """Writes as fast as the client reads, and not at all when it has gone."""
        while self._websocket.paused and not self.leaving:
            await self._websocket.drain()
        self.write(event.frames, event.count)
        await asyncio.sleep(0)

    async def messages(self) -> AsyncIterator[str]:
        """What the client says: packets of Engine.IO, but for its answers to pings."""
        with suppress(ConnectionClosed):
            while not self.leaving:
                message = await self._websocket.recv()
                self._is_heard = True
                if not self._allowance.take(self._loop.time()):
                    self.end(CloseCode.POLICY_VIOLATION, "too many messages")
                elif not self.leaving and message != _PONG:
                    yield message if isinstance(message, str) else ""

    def end(self, code: int, reason: str) -> None:
        """Closes with a code of RFC 6455, 7.4. What the client does not read is thrown away after 2 s."""
        if self.leaving:
            return
        log.info("client closed: %s", reason)
        with suppress(InvalidState):
            self._protocol.send_close(code, reason)
        self._websocket.send_data()
        self._loop.call_later(_LINGER_SECONDS, self._transport.abort)

    def session_began(self) -> None:
        """The client has proved who it is: the connection may stay."""
        self._without_session.cancel()

    def session_ended(self, seconds: float) -> None:
        """The connection ends after so many seconds unless a session begins."""
        self._without_session.cancel()
        self._without_session = self._loop.call_later(seconds, self._no_session)

    def closed(self) -> None:
        """The connection is over."""
        self._pinging.cancel()
        self._without_session.cancel()

    def _no_session(self) -> None:
        self.end(CloseCode.POLICY_VIOLATION, "no session")

    def _ping(self) -> None:
        if not self._is_heard:
            self.end(CloseCode.INTERNAL_ERROR, "no answer to a ping")
            return
        self._is_heard = False
        self.write(frame(_PING))
        self._pinging = self._loop.call_later(_PING_SECONDS, self._ping)
