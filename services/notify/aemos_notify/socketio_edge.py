"""Socket.IO: who may connect, for how long, and what a client says."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from aemos_core.errors import AemosError, Kind, internal, invalid, not_found
from aemos_core.identity import Caller, TokenVerifier, set_caller
from aemos_core.notification_log import NotificationFeed
from aemos_core.times import rfc3339
from aemos_core.waiting import wait
from socketio.exceptions import ConnectionRefusedError as Refused

from aemos_notify.client import Client
from aemos_notify.domain import Subject, Wanted, wanted
from aemos_notify.live_readings import LiveReadings
from aemos_notify.replay import Replayer
from aemos_notify.rooms import Rooms
from aemos_notify.socketio_server import SocketIoServer, websocket_of
from aemos_notify.subjects import Subjects

log = logging.getLogger("aemos.notify")

Answer = dict[str, Any]
ROOMS_PER_CLIENT = 1_000
_CLOSE_SECONDS = 2.0
_LOOK_SECONDS = 1.0


class SocketIoEdge:
    """The handlers. `listening()` returns when live readings flow, or after a moment when they cannot."""

    def __init__(
        self,
        verifier: TokenVerifier,
        subjects: Subjects,
        rooms: Rooms,
        feed: NotificationFeed,
        replayer: Replayer,
        readings: LiveReadings,
        listening: Callable[[], Awaitable[None]],
    ) -> None:
        self._verifier = verifier
        self._subjects = subjects
        self._rooms = rooms
        self._feed = feed
        self._replayer = replayer
        self._readings = readings
        self._listening = listening
        self._clients: dict[str, Client] = {}
        self._farewells: set[asyncio.Task[None]] = set()
        self.server = SocketIoServer()
        self.server.on("connect", self._connect)
        self.server.on("disconnect", self._disconnect)
        for event, handler in (("subscribe", self._join), ("unsubscribe", self._leave), ("refresh", self._refresh)):
            self.server.on(event, self._answering(handler))
        self.server.on("*", self._unknown)

    async def _connect(self, sid: str, environ: dict[str, Any], auth: Any = None) -> None:
        try:
            who = await self._proven(auth)
        except AemosError as error:
            raise Refused(error.reason) from None
        client = self._clients[sid] = Client(who, websocket_of(environ))
        client.websocket.session_began()
        self._expire_later(sid, client)
        # The library puts CONNECT on the queue in this turn of the loop; whatever is sent must come after it.
        asyncio.get_running_loop().call_soon(self._admit, sid)

    async def _proven(self, auth: Any) -> Caller:
        token = auth.get("token") if isinstance(auth, dict) else None
        return await self._verifier.verify(token if isinstance(token, str) else "")

    def _admit(self, sid: str) -> None:
        if client := self._clients.get(sid):
            self._replayer.admit(client)

    async def _disconnect(self, sid: str, reason: str) -> None:
        client = self._clients.pop(sid, None)
        if client is None:
            return
        self._rooms.leave_all(client)
        self._readings.leave_all(client)
        client.left()
        client.websocket.session_ended(_CLOSE_SECONDS)

    def _expire_later(self, sid: str, client: Client) -> None:
        if client.expiry is not None:
            client.expiry.cancel()
        seconds = max(0.0, client.caller.expires_at - time.time())
        client.expiry = asyncio.get_running_loop().call_later(seconds, self._expire, sid)

    async def run(self, stop: asyncio.Event) -> None:
        """A component: ends the connections of users that logged out, until told to stop."""
        while not await wait(stop, _LOOK_SECONDS):
            with suppress(AemosError):  # ingest is away: who is connected stays so
                ended = (await self._verifier.trust()).ended if self._clients else frozenset()
                for sid in [sid for sid, client in self._clients.items() if client.caller.session in ended]:
                    self._expire(sid, "session_ended")

    def _expire(self, sid: str, reason: str = "token_expired") -> None:
        farewell = asyncio.get_running_loop().create_task(self._say_farewell(sid, reason))
        self._farewells.add(farewell)
        farewell.add_done_callback(self._farewells.discard)

    async def _say_farewell(self, sid: str, reason: str) -> None:
        await self.server.emit("session-expired", {"reason": reason}, to=sid)
        await self.server.disconnect(sid)

    async def _unknown(self, event: str, sid: str, *arguments: Any) -> Answer:
        detail = "events are subscribe, unsubscribe and refresh"
        return _refusal(AemosError(Kind.INVALID, detail, reason="unknown_event"))

    def _answering(self, handler: Callable[..., Awaitable[Answer]]) -> Callable[..., Awaitable[Answer]]:
        """What a client hears: never an exception, never silence."""

        async def answer(sid: str, *arguments: Any) -> Answer:
            try:
                return {"ok": True, **await handler(self._clients[sid], sid, arguments)}
            except AemosError as error:
                return _refusal(error)
            except Exception:
                log.exception("a client could not be answered")
                return _refusal(internal())

        return answer

    async def _refresh(self, client: Client, sid: str, arguments: tuple[Any, ...]) -> Answer:
        """A new token of the same user, before the old one expires."""
        who = await self._proven(arguments[0] if arguments else None)
        if (who.organization_id, who.user_id) != (client.caller.organization_id, client.caller.user_id):
            raise invalid("token", "is another user's")
        client.caller = who
        if sid in self._clients:
            self._expire_later(sid, client)
        return {"expiresAt": rfc3339(int(who.expires_at * 1000))}

    async def _join(self, client: Client, sid: str, arguments: tuple[Any, ...]) -> Answer:
        asked = wanted(arguments)
        set_caller(client.caller)
        subject = await self._subjects.find(asked)
        await self._feed.position(client.caller.organization_id)
        if len({*self._rooms.of(client), *subject.rooms}) > ROOMS_PER_CLIENT:
            raise AemosError(Kind.BUSY, f"at most {ROOMS_PER_CLIENT} rooms", reason="too_many_rooms")
        answer: Answer = {"rooms": list(subject.rooms)}
        if sid in self._clients:  # it may have left meanwhile
            if await self._enter(client, subject, asked):
                answer["truncated"] = True
            if sid in self._clients:
                await self._look(client, subject, asked)
            else:
                self._rooms.leave_all(client)
        return answer

    async def _enter(self, client: Client, subject: Subject, asked: Wanted) -> bool:
        """Whether something that was missed is left out."""
        truncated = False
        if asked.after is None:
            self._replayer.enter(client, subject)
        else:
            truncated = await self._replayer.replay(client, subject, asked.after)
        client.subjects |= dict.fromkeys(subject.names, subject)
        return truncated

    async def _look(self, client: Client, subject: Subject, asked: Wanted) -> None:
        if subject.readings:
            self._readings.enter(subject.readings, client, every=asked.all_readings)
            await self._listening()

    async def _leave(self, client: Client, sid: str, arguments: tuple[Any, ...]) -> Answer:
        asked = wanted(arguments)
        subject = client.subjects.get(asked.name)
        if subject is None:
            raise not_found("subscription")
        for name in subject.names:
            client.subjects.pop(name, None)
        client.coverage = client.coverage.without(subject.rooms)
        for room in subject.rooms:
            self._rooms.leave(room, client)
        self._readings.leave(subject.readings, client)
        return {"rooms": list(subject.rooms)}


def _refusal(error: AemosError) -> Answer:
    return {"ok": False, "reason": error.reason, "detail": error.detail}
