"""Socket.IO: who may connect, and whose devices' rooms a client may be in."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aemos.v1.device_pb2 import Device, GetDeviceRequest
from aemos_core.errors import AemosError, Kind, internal, invalid, not_found
from aemos_core.identity import Caller, TokenVerifier, set_caller
from aemos_core.names import device_id_room, device_room
from socketio.exceptions import ConnectionRefusedError as Refused

from aemos_notify.rooms import Event, Rooms
from aemos_notify.socketio_server import OutQueue, SocketIoServer, queue_of, websocket_of
from aemos_notify.websocket import DirectWebSocket

log = logging.getLogger("aemos.notify")

Answer = dict[str, Any]
GetDevice = Callable[[GetDeviceRequest], Awaitable[Device]]
ROOMS_PER_CLIENT = 1_000
_CLOSE_SECONDS = 2.0
_UUID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def organization_room(organization_id: int) -> str:
    """The room that every client of an organization is in; nobody can ask for it."""
    return f"organization-{organization_id}"


class Client:
    """A session: a user on a connection, with the devices (uuid: id) it subscribed."""

    def __init__(self, who: Caller, websocket: DirectWebSocket, queue: OutQueue) -> None:
        self.caller = who
        self.websocket = websocket
        self.devices: dict[str, int] = {}
        self.expiry: asyncio.TimerHandle | None = None
        self._queue = queue

    def send(self, event: Event) -> None:
        """Writes at once when nothing waits, else queues; when the queue is full, the connection ends."""
        if not (self._queue.may_be_passed and self.websocket.write_frame(event.frames)):
            self._queue.offer(event.packets)


class SocketIoEdge:
    """The handlers. `listening()` returns when live readings flow, or after a moment when they cannot."""

    def __init__(
        self,
        verifier: TokenVerifier,
        get_device: GetDevice,
        devices: Rooms,
        organizations: Rooms,
        listening: Callable[[], Awaitable[None]],
    ) -> None:
        self._verifier = verifier
        self._get_device = get_device
        self._devices = devices
        self._organizations = organizations
        self._listening = listening
        self._clients: dict[str, Client] = {}
        self._farewells: set[asyncio.Task[None]] = set()
        self.server = SocketIoServer()
        self.server.on("connect", self._connect)
        self.server.on("disconnect", self._disconnect)
        self.server.on("subscribe", self._subscribe)
        self.server.on("unsubscribe", self._unsubscribe)
        self.server.on("*", self._unknown)

    async def _connect(self, sid: str, environ: dict[str, Any], auth: Any = None) -> None:
        token = auth.get("token") if isinstance(auth, dict) else None
        try:
            who = await self._verifier.verify(token if isinstance(token, str) else "")
        except AemosError as error:
            raise Refused(error.reason) from None
        client = self._clients[sid] = Client(who, websocket_of(environ), queue_of(environ))
        client.websocket.session_began()
        loop = asyncio.get_running_loop()
        client.expiry = loop.call_later(max(0.0, who.expires_at - time.time()), self._expire, sid)
        # The library puts CONNECT on the queue in this turn of the loop; whatever is sent must come after it.
        loop.call_soon(self._admit, sid)

    def _admit(self, sid: str) -> None:
        if client := self._clients.get(sid):
            self._organizations.join(organization_room(client.caller.organization_id), client)

    async def _disconnect(self, sid: str, reason: str) -> None:
        client = self._clients.pop(sid, None)
        if client is None:
            return
        self._devices.leave_all(client)
        self._organizations.leave_all(client)
        if client.expiry is not None:
            client.expiry.cancel()
        client.websocket.session_ended(_CLOSE_SECONDS)

    def _expire(self, sid: str) -> None:
        farewell = asyncio.get_running_loop().create_task(self._say_farewell(sid))
        self._farewells.add(farewell)
        farewell.add_done_callback(self._farewells.discard)

    async def _say_farewell(self, sid: str) -> None:
        await self.server.emit("session-expired", {"reason": "token_expired"}, to=sid)
        await self.server.disconnect(sid)

    async def _subscribe(self, sid: str, *arguments: Any) -> Answer:
        return await self._answer(self._join(self._clients[sid], sid, arguments))

    async def _unsubscribe(self, sid: str, *arguments: Any) -> Answer:
        return await self._answer(self._leave(self._clients[sid], arguments))

    async def _unknown(self, event: str, sid: str, *arguments: Any) -> Answer:
        return _refusal(AemosError(Kind.INVALID, "events are subscribe and unsubscribe", reason="unknown_event"))

    async def _answer(self, work: Awaitable[list[str]]) -> Answer:
        """What a client hears: never an exception, never silence."""
        try:
            return {"ok": True, "rooms": await work}
        except AemosError as error:
            return _refusal(error)
        except Exception:
            log.exception("a subscription failed")
            return _refusal(internal())

    async def _join(self, client: Client, sid: str, arguments: tuple[Any, ...]) -> list[str]:
        wanted = _wanted(arguments)
        if len(self._devices.of(client)) + 2 > ROOMS_PER_CLIENT:
            raise AemosError(Kind.BUSY, f"at most {ROOMS_PER_CLIENT} rooms", reason="too_many_rooms")
        set_caller(client.caller)
        device = await self._get_device(GetDeviceRequest(device=str(wanted)))
        # An id is looked up like a uuid, and digits are a possible uuid: only what was asked for is an answer.
        if wanted not in (device.id, device.uuid):
            raise not_found("device")
        rooms = [device_room(device.uuid), device_id_room(device.id)]
        if sid in self._clients:  # it may have left meanwhile
            client.devices[device.uuid] = device.id
            for room in rooms:
                self._devices.join(room, client)
            await self._listening()
        return rooms

    async def _leave(self, client: Client, arguments: tuple[Any, ...]) -> list[str]:
        wanted = _wanted(arguments)
        for uuid, device_id in client.devices.items():
            if wanted in (uuid, device_id):
                del client.devices[uuid]
                rooms = [device_room(uuid), device_id_room(device_id)]
                for room in rooms:
                    self._devices.leave(room, client)
                return rooms
        raise not_found("subscription")


def _refusal(error: AemosError) -> Answer:
    return {"ok": False, "reason": error.reason, "detail": error.detail}


def _wanted(arguments: tuple[Any, ...]) -> str | int:
    """The device's uuid or id; INVALID when the arguments name neither."""
    named = arguments[0] if arguments and isinstance(arguments[0], dict) else {}
    uuid, device_id = named.get("deviceUuid"), named.get("deviceId")
    if isinstance(uuid, str) and _UUID.fullmatch(uuid):
        return uuid
    if type(device_id) is int and 0 < device_id < 2**63:
        return device_id
    raise invalid("deviceUuid", "is required, or deviceId")
