"""Who observes a device's notifications over CoAP (RFC 7641), and what each is told next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count

import msgspec
from aemos_core.errors import AemosError, Kind, not_found, unauthenticated, unavailable
from aemos_core.notification_log import LogId
from aiocoap import Message

from aemos_gateway import coap_answers, coap_datagram
from aemos_gateway.coap_answers import CONTENT_FORMAT, JSON, MAX_AGE, MOST_PAYLOAD, OBSERVE, Answer
from aemos_gateway.coap_exchanges import Exchange, Exchanges
from aemos_gateway.coap_socket import Address
from aemos_gateway.device_auth import Device, DeviceAuth
from aemos_gateway.downlink import Downlink, Listener
from aemos_gateway.presence import Presence
from aemos_gateway.token_holders import TokenHolders

MOST_OBSERVERS = 10_000
MOST_PER_DEVICE = 20
MOST_WAITING = 16
"""Notifications that wait for a slow client; the oldest gives way."""
MOST_REMEMBERED = 10_000
REFRESH_SECONDS = 900
"""The newest notification is sent again after this long without one, so a client that is gone is found out."""
_GRACE_SECONDS = 60
_RETRY_SECONDS = 60
_SEQUENCE = 1 << 24
_NULL = b"null"


class _Identified(msgspec.Struct):
    id: msgspec.Raw = msgspec.Raw(_NULL)


_identified = msgspec.json.Decoder(_Identified)


def fitting(notification: bytes) -> bytes:
    """The notification, or what says that it does not fit one datagram."""
    if len(notification) <= MOST_PAYLOAD:
        return notification
    try:
        found = bytes(_identified.decode(notification).id)
    except msgspec.DecodeError:  # what a user sends to a device need not be a notification
        found = _NULL
    shown = found if len(found) <= 100 else _NULL
    return b'{"id":%b,"reason":"too_large","detail":"longer than %d bytes"}' % (shown, MOST_PAYLOAD)


class Inbox:
    """What one observer is still to be told."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[bytes | AemosError] = asyncio.Queue(MOST_WAITING)

    def put(self, payload: bytes | AemosError) -> None:
        """A notification, or the error that ends the observation."""
        if self._waiting.full():
            self._waiting.get_nowait()
        self._waiting.put_nowait(payload)

    async def next(self, seconds: float = REFRESH_SECONDS) -> bytes | None:
        """The next notification, None when none came in `seconds`; raises what ended the observation."""
        try:
            async with asyncio.timeout(seconds):
                payload = await self._waiting.get()
        except TimeoutError:
            return None
        if isinstance(payload, AemosError):
            raise payload
        return payload


class Observers:
    """The observers of this process, capped, and the newest notification of each device that had one."""

    def __init__(self, downlink: Downlink) -> None:
        self._downlink = downlink
        self._listeners: set[Listener] = set()
        self._newest: dict[str, bytes] = {}
        self._closed = False
        # From the clock: a client that registers again after our restart must not take us for late (RFC 7641, 3.4).
        self._numbers = count(int(time.time()))

    def __len__(self) -> int:
        return len(self._listeners)

    def newest(self, device_uuid: str) -> bytes:
        """The newest notification, an empty object when this process saw none."""
        return self._newest.get(device_uuid, b"{}")

    def next_number(self) -> int:
        """The Observe option of the next notification: only grows, modulo 2 ** 24."""
        return next(self._numbers) % _SEQUENCE

    @contextmanager
    def registered(self, device_uuid: str, peer: str) -> Iterator[Inbox]:
        """An inbox that fills for as long as the block lasts; UNAVAILABLE when there are too many."""
        if self._closed:
            raise unavailable("this server is stopping")
        of_device = sum(listener in self._listeners for listener in self._downlink.of(device_uuid))
        if len(self) >= MOST_OBSERVERS or of_device >= MOST_PER_DEVICE:
            raise AemosError(
                Kind.UNAVAILABLE, "too many observers", reason="too_many_observers", retry_after=_RETRY_SECONDS
            )
        inbox = Inbox()
        over = AemosError(Kind.UNAVAILABLE, "the observation is over: register again", reason="observation_over")
        listener = Listener(
            device_uuid, "coap", peer, partial(self._heard, inbox, device_uuid), partial(inbox.put, over)
        )
        self._listeners.add(listener)
        self._downlink.add(listener)
        try:
            yield inbox
        finally:
            self._downlink.remove(listener)
            self._listeners.remove(listener)

    def close(self) -> None:
        """Ends every observation, with a word to its client, and begins no other."""
        self._closed = True
        for listener in list(self._listeners):
            listener.close()

    def _heard(self, inbox: Inbox, device_uuid: str, notification: bytes, _: LogId | None) -> None:
        payload = fitting(notification)
        self._newest.pop(device_uuid, None)
        self._newest[device_uuid] = payload
        if len(self._newest) > MOST_REMEMBERED:
            del self._newest[next(iter(self._newest))]
        inbox.put(payload)


class Notifications:
    """The resource of a device's notifications: GET is answered by the newest, GET with Observe by each from now on."""

    def __init__(
        self, auth: DeviceAuth, observers: Observers, holders: TokenHolders, presence: Presence, exchanges: Exchanges
    ) -> None:
        self._auth = auth
        self._observers = observers
        self._holders = holders
        self._presence = presence
        self._exchanges = exchanges
        self._observing: dict[tuple[Address, bytes], asyncio.Task[None]] = {}

    async def get(self, exchange: Exchange, request: Message, device_token: bytes) -> Answer | None:
        """The answer; None when an observation ends because its client resets a notification, or is gone.

        Raises what else ends it. A client that uses a token again ends what it observed with it (RFC 7641, 3.6).
        """
        place, task = (exchange.peer.address, request.token), asyncio.current_task()
        before = self._observing.pop(place, None)
        if request.opt.observe != 0:
            if before:
                before.cancel()
            device = await self._owner(request, device_token)
            newest = self._observers.newest(device.device_uuid)
            return coap_answers.content(newest, {CONTENT_FORMAT: JSON, MAX_AGE: 0}, request.opt.block2)
        assert task is not None  # a request is served by a task
        self._observing[place] = task
        try:
            if before:  # it makes room first: at the cap, who observes can still register again
                before.cancel()
                await asyncio.wait([before])
            await self._observe(exchange, request, device_token)
        except TimeoutError:  # and nobody hears what else the client observed
            for (address, _), other in self._observing.items():
                if address == exchange.peer.address and other is not task:
                    other.cancel()
        finally:
            if self._observing.get(place) is task:
                del self._observing[place]
        return None

    async def _observe(self, exchange: Exchange, request: Message, device_token: bytes) -> None:
        device = await self._owner(request, device_token)
        with (
            self._observers.registered(device.device_uuid, str(exchange.peer)) as inbox,
            self._holders.holding(device_token, partial(inbox.put, unauthenticated())),
            self._presence.connected(device.device_id),
        ):
            payload = self._observers.newest(device.device_uuid)
            if coap_datagram.is_confirmable(exchange.request) and not exchange.acknowledged:
                self._exchanges.answer(exchange, self._notification(request, payload))
                payload = await inbox.next() or payload
            exchange.acknowledged = True
            while await self._deliver(exchange, request, device_token, payload):
                payload = await inbox.next() or payload

    async def _deliver(self, exchange: Exchange, request: Message, device_token: bytes, payload: bytes) -> bool:
        """Confirmable, even if the request was not: that is how a client that died is found out (RFC 7641, 4.5)."""
        async with self._exchanges.turn(exchange):
            try:
                await self._owner(request, device_token)
            except AemosError as error:  # a revoked token ends the observation; ingest being away does not
                if error.kind is not Kind.UNAVAILABLE:
                    raise
            return await self._exchanges.deliver(exchange, self._notification(request, payload))

    def _notification(self, request: Message, payload: bytes) -> Answer:
        number = self._observers.next_number()
        options = {OBSERVE: number, CONTENT_FORMAT: JSON, MAX_AGE: REFRESH_SECONDS + _GRACE_SECONDS}
        return coap_answers.content(payload, options, request.opt.block2)

    async def _owner(self, request: Message, device_token: bytes) -> Device:
        """The device in the path, which must be the token's."""
        device = await self._auth.resolve(device_token)
        if device.device_uuid != request.opt.uri_path[3]:
            raise not_found("device")
        return device
