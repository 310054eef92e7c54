"""Readings that come twice: told apart by the device's messageId, or by the key that the edge gives what a protocol
repeats. The same again is answered as the first time, and stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from aemos.v1 import data_stream_pb2 as pb
from aemos_core.database import Database
from aemos_core.errors import AemosError, FieldError, Kind, unavailable
from aemos_core.times import now_ms
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_ingest import readings_store as store
from aemos_ingest.domain import NO_VARIABLE, SourceKey, Variable

KEPT_MS = 24 * 60 * 60 * 1000
REPEATED_WITHIN_MS = 10 * 60 * 1000
_UNDER_WAY_MS = 60 * 1000
_SPANS_AT_ONCE = 20


@dataclass(slots=True, eq=False)
class Incoming:
    """A reading, and what becomes of it: it is stored as `text` and `number` under an `id`, which is 0 until then, or
    has an `error`, or is dropped with a group of which another one has the error.

    What is asked of every reading is read once from its message, where each look at a field costs a small call.
    """

    request: pb.NewReading
    sender: SourceKey
    received_at_ms: int
    message_id: str
    origin_key: int
    maybe_repeated: bool
    group: int
    variable: Variable = NO_VARIABLE
    text: str = ""
    number: float | None = None
    error: AemosError | None = None
    id: int = 0
    is_dropped: bool = False
    same_as: Incoming | None = None
    repeats_at_ms: int = 0

    @classmethod
    def of(cls, request: pb.NewReading) -> Self:
        """A reading that has just come."""
        return cls(
            request,
            request.token_id or (request.organization_id, request.sensor_uuid),
            request.received_at_ms,
            request.message_id,
            request.origin_key,
            request.maybe_repeated,
            request.group,
        )

    @property
    def is_fresh(self) -> bool:
        """It is to be stored."""
        return not (self.id or self.error or self.is_dropped or self.same_as)

    @property
    def is_bereft(self) -> bool:
        """The one it repeats is not to be stored."""
        return self.same_as is not None and (self.same_as.is_dropped or self.same_as.error is not None)

    def begin_again(self) -> None:
        """Forgets what a transaction that failed made of it."""
        self.id = self.repeats_at_ms = 0
        self.error = self.same_as = None
        self.is_dropped = False

    def settle(self) -> None:
        """Takes over what became of the one it repeats, after the commit."""
        if self.same_as is not None:
            self.found(self.same_as.id, self.same_as.received_at_ms)

    def found(self, reading_id: int, received_at_ms: int) -> None:
        """It is stored already."""
        self.id, self.repeats_at_ms = reading_id, received_at_ms

    def conflicts(self) -> None:
        """Its messageId names another reading."""
        mistake = FieldError("messageId", "was used for another reading")
        self.error = AemosError(Kind.EXISTS, mistake.message, reason="message_id_used", errors=[mistake])

    @property
    def name(self) -> tuple[int, str]:
        """What the device calls it; the text is empty when it has no name for it."""
        return self.variable.device_id, self.message_id

    @property
    def origin(self) -> store.Origin:
        """What its protocol calls it; the key is 0 when it cannot repeat it."""
        return self.variable.telemetry_data_id, self.origin_key

    def arrived_ms(self, now: int) -> int:
        """When gateway got it, or, when only the device's time is known, long enough before."""
        return self.received_at_ms if self.request.at_arrival else now - _UNDER_WAY_MS

    def before_ms(self, now: int) -> int:
        """What it repeats arrived before."""
        return self.request.repeats_before_ms or (self.received_at_ms if self.request.at_arrival else now)

    @property
    def digest(self) -> bytes:
        """16 bytes that are the same when the same is sent again."""
        at = 0 if self.request.at_arrival else self.received_at_ms
        parts = (self.variable.sensor_uuid.encode(), self.variable.name.encode(), self.request.value, b"%d" % at)
        return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()


async def claim(database: Database, accepted: Iterable[Incoming]) -> None:
    """Says what may be a repetition, before `recognize` looks for what it repeats.

    That may be under way in another process: this one waits for it, or that one finds the claim (`yield_to_claims`).
    """
    now = now_ms()
    origins = {a.origin: a.before_ms(now) for a in accepted if a.maybe_repeated}
    if origins:
        await store.claim(database, origins)


async def look_back(database: Database, accepted: Iterable[Incoming]) -> int:
    """Marks what repeats a reading of more than a minute ago; returns that time, for `recognize`.

    Nothing of then is under way, so nothing is locked; and beside the transaction that stores the rest, which has its
    deadline: ten minutes of many variables take longer.
    """
    settled = now_ms() - _UNDER_WAY_MS
    doubtful = [a for a in accepted if a.maybe_repeated and a.request.at_arrival]
    spans = [s for s in _spans(doubtful) if s[0].from_ms <= settled]
    stored: store.Stored = {}
    for start in range(0, len(spans), _SPANS_AT_ONCE):
        async with database.read() as connection:
            for span, keys in spans[start : start + _SPANS_AT_ONCE]:
                until = span._replace(to_ms=min(span.to_ms, settled))
                stored |= await store.origins(connection, until, keys, waiting=False)
    for one in doubtful:
        if (known := stored.get(one.origin)) is not None:
            one.found(*known)
    return settled


async def recognize(connection: AsyncConnection, accepted: Sequence[Incoming], settled_ms: int) -> None:
    """Marks what is stored already, of what arrived since `settled_ms`, and what stands twice among `accepted`. Costs
    nothing where nothing can repeat.

    In the transaction that stores the rest: until its end no other process stores a repetition of the same.
    """
    named = [a for a in accepted if a.message_id]
    doubtful = [a for a in accepted if a.maybe_repeated and not a.id]
    if named:
        _compare_names(named, await store.messages(connection, {a.name for a in named}))
    if doubtful:
        await _look_for_origins(connection, accepted, doubtful, settled_ms)


async def yield_to_claims(connection: AsyncConnection, inserted: Iterable[Incoming]) -> None:
    """Raises EXISTS when a repetition of what is inserted here, and not yet committed, may have been stored before it.

    One look for a commit, among the claims that are younger than its readings: there is hardly ever one.
    """
    now = now_ms()
    arrived = {a: a.arrived_ms(now) for a in inserted if a.origin_key and not a.maybe_repeated}
    origins = (a.origin for a in arrived)
    claims = await store.claims(connection, origins, min(arrived.values())) if arrived else {}
    overtaken = [a for a, at in arrived.items() if claims.get(a.origin, 0) > at] if claims else []
    for one in overtaken:
        one.maybe_repeated = True
    if overtaken:
        raise AemosError(Kind.EXISTS, "a repetition came first")


def _compare_names(named: Iterable[Incoming], stored: store.Messages) -> None:
    first: dict[tuple[int, str], Incoming] = {}
    for one in named:
        known, earlier = stored.get(one.name), first.setdefault(one.name, one)
        if known is not None and known.digest == one.digest:
            one.found(known.reading_id, known.received_at_ms)
        elif known is not None or earlier.digest != one.digest:
            one.conflicts()
        elif earlier is not one:
            one.same_as = earlier


async def _look_for_origins(
    connection: AsyncConnection, accepted: Iterable[Incoming], doubtful: Sequence[Incoming], settled_ms: int
) -> None:
    first: dict[store.Origin, Incoming] = {}
    for one in accepted:
        if one.origin_key:
            first.setdefault(one.origin, one)
    await store.lock(connection, {one.origin for one in doubtful})
    timed = [one for one in doubtful if not one.request.at_arrival]
    moments = {(one.variable.telemetry_data_id, one.received_at_ms) for one in timed}
    stored = await store.origins_at(connection, moments)
    for span, keys in _spans(one for one in doubtful if one.request.at_arrival):
        if span.to_ms > settled_ms:
            recent = span._replace(from_ms=max(span.from_ms, settled_ms))
            stored |= await store.origins(connection, recent, keys, waiting=True)
    for one in doubtful:
        if (known := stored.get(one.origin)) is not None:
            one.found(*known)
        elif first[one.origin] is not one:
            one.same_as = first[one.origin]


def _spans(doubtful: Iterable[Incoming]) -> list[tuple[store.Span, set[int]]]:
    """Where to look for what these repeat, and its keys: a span for each variable. The gateway's clock may be ahead of
    ours."""
    now = now_ms()
    sought: dict[int, tuple[store.Span, set[int]]] = {}
    for one in doubtful:
        variable_id, request = one.origin[0], one.request
        begin = request.repeats_after_ms or now - REPEATED_WITHIN_MS
        end = request.repeats_before_ms or now + REPEATED_WITHIN_MS
        known, keys = sought.get(variable_id, (store.Span(variable_id, begin, end), set()))
        keys.add(one.origin_key)
        sought[variable_id] = (store.Span(variable_id, min(known.from_ms, begin), max(known.to_ms, end)), keys)
    return list(sought.values())


def drop_groups(accepted: Iterable[Incoming]) -> None:
    """Of a group with a mistake nothing is stored."""
    refused = {a.group for a in accepted if a.error and a.group}
    if refused:
        for one in accepted:
            if one.group in refused and not one.error:
                one.is_dropped, one.id, one.same_as = True, 0, None


def drop_batches(batches: Sequence[Sequence[Incoming]]) -> None:
    """Drops groups, each within its batch, for other gateways use the same numbers; and, with its group, what repeats a
    reading that was dropped."""
    while True:
        for batch in batches:
            drop_groups(batch)
        bereft = [one for batch in batches for one in batch if one.is_bereft]
        if not bereft:
            return
        for one in bereft:
            one.same_as, one.error = None, unavailable("the reading that it repeats was not stored")
