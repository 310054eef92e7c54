"""The notification log as its readers see it: places in it, its entries, and a feed that misses none of them."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from redis.exceptions import RedisError

from aemos_core.announce import BODY, EVENT, EVERYBODY, ROOMS
from aemos_core.errors import invalid, unavailable
from aemos_core.names import DEVICE_STATE_CHANGE, NOTIFICATION_LOGS, everybody_room, notification_log, organization_room
from aemos_core.redis_link import RedisClient, Subscriber

log = logging.getLogger("aemos.notifications")

_ID = re.compile(r"(\d{1,15})-(\d{1,18})", re.ASCII)
_LAST_SEQ = 10**18 - 1
_READY_SECONDS = 1.0
_UNSURE_SECONDS = 1
_LOGS_AT_ONCE = 100
_ENTRIES_AT_ONCE = 500


class LogId(NamedTuple):
    """A place in an organization's log: milliseconds since 1970 UTC and a count within them, as in a Redis stream."""

    ms: int = 0
    seq: int = 0

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"

    def before(self) -> LogId:
        """The last place before this one."""
        return LogId(self.ms, self.seq - 1) if self.seq else LogId(self.ms - 1, _LAST_SEQ)


BEGINNING, END = LogId(), LogId(2**53)


def parse_log_id(text: str, loc: str) -> LogId:
    """Of "1768905001234-0"; the beginning when empty; INVALID names `loc` otherwise."""
    if not text:
        return BEGINNING
    match = _ID.fullmatch(text)
    if match is None:
        raise invalid(loc, "is not a notification's id, such as 1768905001234-0")
    return LogId(int(match[1]), int(match[2]))


class Logged(NamedTuple):
    """A notification in the log; `body` is its JSON object without `id`."""

    id: LogId
    event: str
    rooms: tuple[str, ...]
    body: str

    @property
    def notification(self) -> str:
        """The JSON object as it was published."""
        return f'{self.body[:-1]},"id":"{self.id}"}}'


class Published(NamedTuple):
    """A notification as it was published. One that did not go through the log has no place there: `id` is None."""

    organization_id: int
    id: LogId | None
    event: str
    rooms: tuple[str, ...]
    notification: bytes
    trace_context: bytes = b""


def logged(log_id: bytes, fields: Mapping[bytes, bytes]) -> Logged:
    """An entry of a Redis stream. One that is no notification has no event and no rooms: nobody hears it."""
    place = parse_log_id(log_id.decode(), "id")
    try:
        rooms = tuple(fields.get(ROOMS, b"").decode().split())
        return Logged(place, fields.get(EVENT, b"").decode(), rooms, fields.get(BODY, b"").decode())
    except UnicodeDecodeError:
        return Logged(place, "", (), "")


def heard_in(organization_id: int, rooms: Sequence[str]) -> tuple[str, ...]:
    """Every room in which a notification is heard: of those it names, everybody's when it is for all, and the
    organization's own."""
    named = (everybody_room(organization_id),) if EVERYBODY in rooms else rooms
    return (*named, organization_room(organization_id))


class _Envelope(msgspec.Struct):
    """A message on the channel; the notification stays the bytes that came."""

    event: str
    notification: msgspec.Raw
    rooms: list[str] = []
    broadcastAll: bool = False  # noqa: N815 - the channel's spelling
    organizationId: int = 0  # noqa: N815
    traceContext: str = ""  # noqa: N815


class _Identified(msgspec.Struct):
    id: str = ""


_envelope = msgspec.json.Decoder(_Envelope)
_identified = msgspec.json.Decoder(_Identified)


def published(message: bytes) -> Published:
    """A message of the channel. Raises msgspec.DecodeError or INVALID when it is none."""
    envelope = _envelope.decode(message)
    body = bytes(envelope.notification)
    log_id = _identified.decode(body).id
    return Published(
        envelope.organizationId,
        parse_log_id(log_id, "id") if log_id else None,
        envelope.event,
        (EVERYBODY,) if envelope.broadcastAll else tuple(envelope.rooms),
        body,
        bytes.fromhex(envelope.traceContext),
    )


class NotificationFeed:
    """A component: hands over every notification once, in the order of its organization's log.

    What is published while the connection to Redis is down is read from the log afterwards. `on_gap` is called after
    every (re)connection, when that is done.
    """

    def __init__(
        self, redis: RedisClient, deliver: Callable[[Published], None], on_gap: Callable[[], None] = lambda: None
    ) -> None:
        self._redis = redis
        self._deliver = deliver
        self._on_gap = on_gap
        self._positions: dict[int, LogId] = {}
        self._began = BEGINNING
        """The place of organizations that had no log when this began: what the ledger may have of them is older."""
        self._ready = asyncio.Event()
        self._subscriber = Subscriber(redis, {DEVICE_STATE_CHANGE: self._published}, on_gap=self._catch_up)

    async def position(self, organization_id: int) -> LogId:
        """As `reached`, once it can be known; UNAVAILABLE when Redis has not answered since the start."""
        try:
            await asyncio.wait_for(self._ready.wait(), _READY_SECONDS)
        except TimeoutError:
            raise unavailable("notifications do not flow yet") from None
        return self.reached(organization_id)

    def reached(self, organization_id: int) -> LogId:
        """Everything up to here was handed over, or is older than this process; nothing behind it was."""
        return self._positions.get(organization_id, self._began)

    async def run(self, stop: asyncio.Event) -> None:
        """Listens until told to stop."""
        await self._subscriber.run(stop)

    def _published(self, message: bytes) -> None:
        found = published(message)
        if found.id is not None:
            if found.id <= self.reached(found.organization_id):
                return  # it was read from the log already
            self._positions[found.organization_id] = found.id
        self._deliver(found)

    async def _catch_up(self) -> None:
        if not self._ready.is_set():
            seconds, _ = await self._redis.time()  # ids are by Redis' clock, some of it cached
            self._began = LogId(1000 * (seconds - _UNSURE_SECONDS))
        organizations = sorted(int(member) for member in await self._redis.smembers(NOTIFICATION_LOGS))
        for start in range(0, len(organizations), _LOGS_AT_ONCE):
            some = organizations[start : start + _LOGS_AT_ONCE]
            if self._ready.is_set():
                while some:
                    some = await self._read_on(some)
            else:
                await self._begin_at_the_end(some)
        self._ready.set()
        self._on_gap()

    async def _begin_at_the_end(self, organizations: Sequence[int]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for organization in organizations:
                pipe.xrevrange(notification_log(organization), count=1)
            newest: list[Any] = await pipe.execute()
        for organization, entries in zip(organizations, newest, strict=True):
            if entries:
                self._positions[organization] = parse_log_id(entries[0][0].decode(), "id")

    async def _read_on(self, organizations: Sequence[int]) -> list[int]:
        """Those of which there may be more."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for organization in organizations:
                after = self.reached(organization)
                pipe.xrange(notification_log(organization), min=f"({after}", count=_ENTRIES_AT_ONCE)
            pages: list[Any] = await pipe.execute()
        for organization, page in zip(organizations, pages, strict=True):
            for entry in page:
                self._read(organization, logged(*entry))
        return [o for o, page in zip(organizations, pages, strict=True) if len(page) == _ENTRIES_AT_ONCE]

    def _read(self, organization: int, entry: Logged) -> None:
        self._positions[organization] = entry.id
        if not entry.event:
            return
        notification = entry.notification.encode()
        try:
            self._deliver(Published(organization, entry.id, entry.event, entry.rooms, notification))
        except Exception:
            log.exception("notification %s was dropped", entry.id)


async def entries(
    redis: RedisClient, organization_id: int, after: LogId, upto: LogId, count: int, *, newest_first: bool = False
) -> list[Logged]:
    """At most `count` entries behind `after`, up to `upto`. UNAVAILABLE when Redis does not answer."""
    stream, low, high = notification_log(organization_id), f"({after}", str(upto)
    try:
        if newest_first:
            found: Any = await redis.xrevrange(stream, high, low, count)
        else:
            found = await redis.xrange(stream, low, high, count)
    except (RedisError, OSError) as error:
        raise unavailable("the notification log did not answer") from error
    return [logged(*entry) for entry in found]
