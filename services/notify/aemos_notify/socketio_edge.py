"""Socket.IO protocol 5 in its default namespace: who may connect, for how long, and what a client says."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aemos_core.errors import AemosError, Kind, internal, invalid, not_found
from aemos_core.identity import Caller, TokenVerifier, set_caller
from aemos_core.notification_log import NotificationFeed
from aemos_core.times import rfc3339
from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode

from aemos_notify.client import Client
from aemos_notify.domain import Subject, Wanted, too_many_rooms, wanted
from aemos_notify.live_readings import LiveReadings
from aemos_notify.replay import Replayer
from aemos_notify.rooms import Event, Rooms, frame
from aemos_notify.subjects import Subjects
from aemos_notify.websocket import Connection

log = logging.getLogger("aemos.notify")

Answer = dict[str, Any]
ROOMS_PER_CLIENT = 1_000
_CLOSE_SECONDS = 2.0
_LONGEST_ID = 18
# Packets of Engine.IO and, behind its 4 (message), of Socket.IO. Binary ones (45, 46) are refused: nothing takes them.
_CLOSE, _CONNECT, _DISCONNECT, _EVENT, _ACK, _CONNECT_ERROR = "1", "40", "41", "42", "43", "44"
_RESERVED = ("connect", "connect_error", "disconnect", "disconnecting")


class SocketIoEdge:
    """Serves connections. `listening()` returns when live readings flow, or after a moment when they cannot."""

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
        self._sessions: dict[Connection, Client | None] = {}
        self._events = {"subscribe": self._join, "unsubscribe": self._leave, "refresh": self._refresh}

    @property
    def connections(self) -> int:
        """How many there are, with a session or without."""
        return len(self._sessions)

    def close(self) -> None:
        """Sends every client away: to another replica, which it finds by connecting again."""
        for connection in list(self._sessions):
            connection.end(CloseCode.SERVICE_RESTART, "restart")

    async def serve(self, websocket: ServerConnection) -> None:
        """A connection from its beginning to its end; one packet at a time: who floods is not read any further."""
        connection = Connection(websocket)
        self._sessions[connection] = None
        try:
            async for packet in connection.messages():
                await self._take(connection, packet)
        except Exception:
            log.exception("a client could not be served")
            connection.end(CloseCode.INTERNAL_ERROR, "internal")
        finally:
            self._end_session(connection)
            connection.closed()
            del self._sessions[connection]

    async def _take(self, connection: Connection, packet: str) -> None:
        kind, rest, client = packet[:2], packet[2:], self._sessions[connection]
        try:
            if packet == _CLOSE:
                connection.end(CloseCode.NORMAL_CLOSURE, "it left")
            elif kind == _CONNECT and rest.startswith("/"):
                namespace = rest.partition(",")[0]
                connection.write(frame(f'{_CONNECT_ERROR}{namespace},{{"message":"Unable to connect"}}'))
            elif kind == _CONNECT and client is None:
                await self._connect(connection, json.loads(rest or "null"))
            elif packet == _DISCONNECT:
                self._end_session(connection)
            elif kind == _EVENT and client is not None:
                await self._hear(client, *_event(rest))
            else:
                raise ValueError(f"no packet of type {kind!r} is taken now")
        except (ValueError, RecursionError) as error:
            log.info("a packet was not understood: %s", type(error).__name__)
            connection.end(CloseCode.INVALID_DATA, "not a Socket.IO packet")

    async def _connect(self, connection: Connection, auth: Any) -> None:
        try:
            who = await self._proven(auth)
        except AemosError as error:
            connection.write(frame(_CONNECT_ERROR + _json({"message": error.reason})))
            return
        client = self._sessions[connection] = Client(who, connection)
        connection.session_began()
        connection.write(frame(_CONNECT + _json({"sid": connection.sid})))
        self._expire_later(client)
        self._replayer.admit(client)

    async def _proven(self, auth: Any) -> Caller:
        token = auth.get("token") if isinstance(auth, dict) else None
        return await self._verifier.verify(token if isinstance(token, str) else "")

    def _expire_later(self, client: Client) -> None:
        if client.expiry is not None:
            client.expiry.cancel()
        seconds = max(0.0, client.caller.expires_at - time.time())
        client.expiry = asyncio.get_running_loop().call_later(seconds, self._expire, client)

    def _expire(self, client: Client) -> None:
        client.send(Event([("session-expired", _json({"reason": "token_expired"}))]))
        client.connection.write(frame(_DISCONNECT))
        self._end_session(client.connection)

    def _end_session(self, connection: Connection) -> None:
        client, self._sessions[connection] = self._sessions[connection], None
        if client is not None:
            self._rooms.leave_all(client)
            self._readings.leave_all(client)
            client.left()
            connection.session_ended(_CLOSE_SECONDS)

    def _is_here(self, client: Client) -> bool:
        return self._sessions.get(client.connection) is client and not client.connection.leaving

    async def _hear(self, client: Client, ack: str, event: str, arguments: list[Any]) -> None:
        answer = await self._answer(client, event, arguments)
        if ack and self._is_here(client):
            client.connection.write(frame(f"{_ACK}{ack}{_json([answer])}"))

    async def _answer(self, client: Client, event: str, arguments: list[Any]) -> Answer:
        """What a client hears: never an exception, never silence."""
        try:
            if event not in self._events:
                detail = "events are subscribe, unsubscribe and refresh"
                raise AemosError(Kind.INVALID, detail, reason="unknown_event")
            return {"ok": True, **await self._events[event](client, arguments)}
        except AemosError as error:
            return {"ok": False, "reason": error.reason, "detail": error.detail}
        except Exception:
            log.exception("a client could not be answered")
            return {"ok": False, "reason": internal().reason, "detail": internal().detail}

    async def _refresh(self, client: Client, arguments: list[Any]) -> Answer:
        """A new token of the same user, before the old one expires."""
        who = await self._proven(arguments[0] if arguments else None)
        if (who.organization_id, who.user_id) != (client.caller.organization_id, client.caller.user_id):
            raise invalid("token", "is another user's")
        client.caller = who
        if self._is_here(client):
            self._expire_later(client)
        return {"expiresAt": rfc3339(int(who.expires_at * 1000))}

    async def _join(self, client: Client, arguments: list[Any]) -> Answer:
        asked = wanted(arguments)
        set_caller(client.caller)
        subject = await self._subjects.find(asked)
        await self._feed.position(client.caller.organization_id)
        if len({*self._rooms.of(client), *subject.rooms}) > ROOMS_PER_CLIENT:
            raise too_many_rooms(ROOMS_PER_CLIENT)
        answer: Answer = {"rooms": list(subject.rooms)}
        if self._is_here(client):  # it may have left meanwhile
            if await self._enter(client, subject, asked):
                answer["truncated"] = True
            if self._is_here(client):
                await self._look(client, subject, asked)
        return answer

    async def _enter(self, client: Client, subject: Subject, asked: Wanted) -> bool:
        """Whether something that was missed is left out."""
        truncated = False
        if asked.after is None:
            self._replayer.enter(client, subject)
        else:
            truncated = await self._replayer.replay(client, subject, asked.after)
        if subject not in client.subjects:
            client.subjects.append(subject)
        return truncated

    async def _look(self, client: Client, subject: Subject, asked: Wanted) -> None:
        if subject.readings:
            self._readings.enter(subject.readings, client, every=asked.all_readings)
            await self._listening()

    async def _leave(self, client: Client, arguments: list[Any]) -> Answer:
        asked = wanted(arguments)
        for subject in client.subjects:
            if asked.name in subject.names:
                client.subjects.remove(subject)
                client.coverage = client.coverage.without(subject.rooms)
                for room in subject.rooms:
                    self._rooms.leave(room, client)
                self._readings.leave(subject.readings, client)
                return {"rooms": list(subject.rooms)}
        raise not_found("subscription")


def _event(text: str) -> tuple[str, str, list[Any]]:
    """Acknowledgement id, name and arguments of an event; ValueError when it is none."""
    ack, bracket, rest = text.partition("[")
    found = json.loads(bracket + rest)
    is_id = ack == "" or (ack.isascii() and ack.isdecimal() and len(ack) <= _LONGEST_ID)
    if not (is_id and found and isinstance(found[0], str)) or found[0] in _RESERVED:
        raise ValueError("not an event")
    return ack, found[0], found[1:]


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
