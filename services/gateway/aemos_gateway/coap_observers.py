"""Who observes a device's notifications over CoAP (RFC 7641), and what each is told next."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count

import msgspec
from aemos_core.errors import AemosError, Kind, unavailable
from aemos_core.notification_log import LogId

from aemos_gateway.coap_answers import MOST_PAYLOAD
from aemos_gateway.downlink import Downlink, Listener

MOST_OBSERVERS = 10_000
MOST_PER_DEVICE = 20
MOST_WAITING = 16
"""Notifications that wait for a slow client; the oldest gives way."""
MOST_REMEMBERED = 10_000
REFRESH_SECONDS = 900
"""The newest notification is sent again after this long without one, so a client that is gone is found out."""
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
        self._per_device: Counter[str] = Counter()
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
        if len(self) >= MOST_OBSERVERS or self._per_device[device_uuid] >= MOST_PER_DEVICE:
            raise AemosError(
                Kind.UNAVAILABLE, "too many observers", reason="too_many_observers", retry_after=_RETRY_SECONDS
            )
        inbox = Inbox()
        over = AemosError(Kind.UNAVAILABLE, "the observation is over: register again", reason="observation_over")
        listener = Listener(
            device_uuid, "coap", peer, partial(self._heard, inbox, device_uuid), partial(inbox.put, over)
        )
        self._listeners.add(listener)
        self._per_device[device_uuid] += 1
        self._downlink.add(listener)
        try:
            yield inbox
        finally:
            self._downlink.remove(listener)
            self._listeners.remove(listener)
            self._per_device[device_uuid] -= 1
            if not self._per_device[device_uuid]:
                del self._per_device[device_uuid]

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
