"""A session of Socket.IO: what a user on a connection hears, and how it is written to."""

from __future__ import annotations

import asyncio

from aemos_core.identity import Caller
from websockets.frames import CloseCode

from aemos_notify.domain import Coverage, Subject
from aemos_notify.rooms import Event
from aemos_notify.websocket import DirectWebSocket

MOST_HELD = 1_000
"""Notifications that wait while an older one is replayed to the client; beyond them the log is asked again."""
GREETING_SECONDS = 1.0


class Client:
    """A member of rooms. Nothing here waits for the peer but `pour`."""

    def __init__(self, who: Caller, websocket: DirectWebSocket) -> None:
        self.caller = who
        self.organization_id = who.organization_id
        self.websocket = websocket
        self.subjects: dict[tuple[str, str | int], Subject] = {}
        """By each of their names."""
        self.coverage = Coverage({})
        self.expiry: asyncio.TimerHandle | None = None
        self._greeting: asyncio.TimerHandle | None = None
        self._held: list[Event] | None = None
        self.overflowed = False
        """More was held back than is kept: what is there is not all."""

    def send(self, event: Event) -> None:
        """Writes at once when nothing waits, else queues; when the queue is full, the connection ends."""
        if not self._passed(event):
            self.websocket.waiting.offer(event.packets)

    def notify(self, event: Event) -> None:
        """As `send`, for what is in the log: held back while something older is replayed."""
        if self._held is None:
            self.send(event)
        elif len(self._held) < MOST_HELD:
            self._held.append(event)
        else:
            self.overflowed = True

    def greet(self) -> None:
        """Holds back for a moment what is for everybody: a first subscription may ask for what came before it."""
        self.hold()
        self._greeting = asyncio.get_running_loop().call_later(GREETING_SECONDS, self.release)

    @property
    def greeted(self) -> bool:
        """The moment is over."""
        return self._greeting is None

    def hold(self) -> None:
        """Begins to hold back, and forgets what was."""
        self._end_greeting()
        self._held, self.overflowed = [], False

    def release(self) -> None:
        """Hands over what was held back; nothing is from now on. When it is not all, the connection ends."""
        self._end_greeting()
        held, self._held = self._held or (), None
        if self.overflowed:
            self.websocket.end(CloseCode.TRY_AGAIN_LATER, "notifications were missed")
            return
        for event in held:
            self.send(event)

    def left(self) -> None:
        """The session is over."""
        self._end_greeting()
        if self.expiry is not None:
            self.expiry.cancel()

    def _end_greeting(self) -> None:
        if self._greeting is not None:
            self._greeting.cancel()
            self._greeting = None

    async def pour(self, event: Event) -> None:
        """Writes as fast as the client reads, and not at all when it has gone."""
        while not (self.websocket.leaving or self._passed(event)):
            await self.websocket.writable.wait()
            await asyncio.sleep(0)

    def _passed(self, event: Event) -> bool:
        return self.websocket.waiting.may_be_passed and self.websocket.write_frame(event.frames)
