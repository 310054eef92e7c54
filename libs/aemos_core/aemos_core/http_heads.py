"""HTTP connections that must say in time, and in few bytes, what they want.

An override of uvicorn 0.54.0: `HttpToolsProtocol.connection_made`, `connection_lost`, `data_received`, `eof_received`,
`on_message_begin`, `on_headers_complete`, `send_400_response` and `_start_asgi_task`, and `FlowControl.resume_reading`.
It makes a `RequestResponseCycle` as `on_headers_complete` does, and reads and sets what its `send` does. The time of a
body is bounded by the route that reads it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence, Sized
from functools import partial
from typing import Any, TypeAlias

from httptools import HttpParserError
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

HEAD_SECONDS = 8.0
HEAD_BYTES = 32 * 1024
LINGER_SECONDS = 0.5
MOST_PIPELINED = 1_000
"""Requests that may wait for the answer to the one before them."""
KNOWN_HEADS = 20_000
"""Heads of a server that are known again, until there are more: most devices send the same one with each reading, but
for the length of its body."""
KNOWN_HEAD_BYTES = 1024
_HEAD_END = b"\r\n\r\n"
_H2C = b"\r\nUpgrade: h2c\r\n"
"""Java's and curl's offer of HTTP/2: with it httptools would leave a request without its body."""


Answer: TypeAlias = Callable[[int, Sequence[tuple[bytes, bytes]], bytes], None]
"""Answers a request, once and later too: status, headers but for the length, body."""
Take: TypeAlias = Callable[[bytes, Answer], bool]
"""Takes the body of a request that came as a whole, without a task and with one write; False leaves it to the
application."""
AtOnce: TypeAlias = Callable[[Scope], Take | None]
"""What takes requests with such a head, on any connection; None: the application does."""
Heads: TypeAlias = dict[bytes, tuple[Take, int]]
"""Heads of requests that were taken, each with what takes them, and how long the body behind it is."""


class _PatientFlow(FlowControl):
    """Reads no further while requests that were read wait: uvicorn reads on with each answer, and one read can bring
    thousands."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


class HastyProtocol(HttpToolsProtocol):
    """Refuses a request whose head does not come within 8 s (408) and 32 KiB (431), and closes its connection.

    It also closes one on which, for 8 s, only what belongs to no request comes: blank lines, or the body of one that is
    answered. A request that comes in one piece costs three assignments; a timer is set for those that do not.

    What comes as a whole is first offered to `at_once`; what it does not take, and the rest, gets a task. A head that
    was taken before means the same again, byte by byte, and is not parsed.
    """

    _begun: tuple[RequestResponseCycle, Any] | None = None
    _is_parsing = False
    _deadline: asyncio.TimerHandle | None = None
    _is_in_head = True
    _head_bytes = 0
    _is_refused = False

    def __init__(self, *args: Any, at_once: AtOnce | None, heads: Heads, **options: Any) -> None:
        super().__init__(*args, **options)
        self._at_once = at_once
        self._heads = heads

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _PatientFlow(transport, self.pipeline)
        self._wait(self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that says no more may still read: what it asked for is answered first."""
        return self._ends_after_answer()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        head = self._head_of(data)
        rest = data[len(head) :]
        if head and self._is_taken(head, rest):
            return
        if self._is_in_head:
            self._head_bytes += len(data)
        self._is_parsing = True
        super().data_received(data.replace(_H2C, b"\r\n"))
        self._is_parsing = False
        if not self._is_refused:
            self._watch()
        if self._begun is not None:
            (cycle, app), self._begun = self._begun, None
            self._start(cycle, app, head, rest)

    def _head_of(self, data: bytes) -> bytes:
        """The head of a request when it begins here and ends soon, else nothing."""
        if self.cycle is None:
            begins = not self._head_bytes
        else:
            begins = self.cycle.response_complete and not (self.cycle.more_body or self._is_in_head)
        end = data.find(_HEAD_END, 0, KNOWN_HEAD_BYTES) if begins and self._at_once else -1
        return b"" if end < 0 else data[: end + len(_HEAD_END)]

    def _is_taken(self, head: bytes, body: bytes) -> bool:
        """Whether this is a whole request of a known head, and was taken."""
        take, length = self._heads.get(head, (None, 0))
        if take is None or len(body) != length or not self._can_answer():
            return False
        self._unset_keepalive_if_required()
        cycle = RequestResponseCycle(
            scope={},  # type: ignore[typeddict-item]  # no application sees it
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=True,
            on_response=self.on_response_complete,
        )
        cycle.more_body = False
        if not take(body, partial(_answer, cycle)):
            return False
        self.cycle = cycle
        self._head_ended()
        return True

    def on_message_begin(self) -> None:
        self._is_in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_ended()
        if len(self.pipeline) >= MOST_PIPELINED:
            raise HttpParserError("too many requests in a row")
        super().on_headers_complete()

    def _head_ended(self) -> None:
        self._is_in_head = False
        self._head_bytes = 0
        if self._deadline is not None:
            self._arrived()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._is_parsing and self._at_once is not None:
            self._begun = cycle, app  # only after what arrived is parsed is it known whether that is all of it
        else:
            super()._start_asgi_task(cycle, app)

    def _start(self, cycle: RequestResponseCycle, app: Any, head: bytes, rest: bytes) -> None:
        scope: Any = cycle.scope  # a TypedDict, which Starlette's type is not
        is_whole = not cycle.more_body and self._can_answer()
        take = self._at_once(scope) if is_whole and self._at_once else None
        body = bytes(cycle.body)
        if take is None or not take(body, partial(_answer, cycle)):
            super()._start_asgi_task(cycle, app)
            return
        cycle.body.clear()
        # A body that was sent in other bytes is in chunks, or another request follows it.
        if head and body == rest and cycle.keep_alive:
            if len(self._heads) >= KNOWN_HEADS:
                self._heads.clear()
            self._heads[head] = take, len(body)

    def _can_answer(self) -> bool:
        """To a client that does not read, only a task can wait before it writes."""
        return not (self.flow.write_paused or self.transport.is_closing())

    def _watch(self) -> None:
        if self._is_in_head:
            self._wait(self._late)
        elif self.cycle and self.cycle.response_complete:
            self._wait(self.transport.close)

    def _wait(self, end: Callable[[], None]) -> None:
        if self._head_bytes > HEAD_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, end)

    def _late(self) -> None:
        if self.flow.read_paused:  # it is we who do not read
            self._deadline = None
            self._wait(self._late)
        else:
            self._refuse(b"408 Request Timeout")

    def send_400_response(self, msg: str) -> None:
        if not self._ends_after_answer():
            super().send_400_response(msg)

    def _ends_after_answer(self) -> bool:
        """What is wrong behind a request that is not answered yet ends the connection, but after that answer: an error
        before it would be taken for it."""
        if not self.cycle or self.cycle.response_complete or self.cycle.more_body:
            return False
        self.cycle.keep_alive = False
        self._is_refused = True
        self._arrived()
        # What comes is read and dropped: closing with bytes unread resets the connection, and takes answers with it.
        FlowControl.resume_reading(self.flow)
        return True

    def _refuse(self, status: bytes) -> None:
        if self._ends_after_answer():
            return
        self.transport.write(b"HTTP/1.1 %b\r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % status)
        # Closed at once, what still arrives would be answered by a reset, and the client might not see why.
        self._is_refused = True
        self._arrived()
        self._deadline = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _arrived(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _answer(cycle: RequestResponseCycle, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
    cycle.response_started = cycle.response_complete = True
    # As run_asgi does: the cycle keeps no connection that is gone.
    completed, cycle.on_response = cycle.on_response, lambda: None
    if cycle.transport.is_closing():
        return
    lines = [STATUS_LINE[status]]
    lines += [b"%b: %b\r\n" % header for header in (*cycle.default_headers, *headers)]
    if not cycle.keep_alive:
        lines.append(b"connection: close\r\n")
    cycle.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (b"".join(lines), len(body), body))
    if not cycle.keep_alive:
        cycle.transport.close()
    completed()
