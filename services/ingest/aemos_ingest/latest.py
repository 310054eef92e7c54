"""The newest reading of each variable, in one Redis hash that is written behind every commit and filled on demand.

A field moves only forward in (time, id), so writers may be late or come twice. The hash may lose fields at any time,
for what is missing is read from the database; it must only never be behind. So whoever could not write what it
committed drops the whole hash before it uses it again, and a filler may only add to the hash that it found wanting
(`generation`): a value read before a drop could otherwise outlive a newer one that the drop took. A late reading that
is the first to say something of its variable is a filler too: the newest is in the database.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple
from uuid import uuid4

import msgspec
from aemos_core.batching import Batcher
from aemos_core.database import Database
from aemos_core.errors import AemosError
from aemos_core.names import LATEST_READINGS
from aemos_core.redis_link import RedisClient
from aemos_core.times import now_ms
from aemos_core.waiting import wait
from redis.exceptions import RedisError

from aemos_ingest import history_store
from aemos_ingest.readings_store import Values

log = logging.getLogger("aemos.ingest")

_MOST_AT_ONCE = 2_000
_MOST_WAITING = 50_000
_REDIS_SECONDS = 1.0
_RETRY_SECONDS = 1.0
_LIFE_SECONDS = 3_600
"""A process that dies between a commit and its write leaves a field behind for no longer than this."""

_LATE_MS = 15_000
"""Longer than it takes a reading to be stored: one with such a time says when it was measured, not that it is new."""

# ARGV: MessagePack [[field, ms, id, "ms:id:text"], ...], life in seconds, generation or "" for a commit, a generation
# for a hash that has none. Answers the generation, then the fields that were missing; nothing when it is another hash.
# Numbers stay under 2^53, which Lua keeps exactly.
_PUT = """
if ARGV[3] == '' then redis.call('HSETNX', KEYS[1], 'generation', ARGV[4]) end
local answer = {redis.call('HGET', KEYS[1], 'generation')}
if ARGV[3] ~= '' and answer[1] ~= ARGV[3] then return {} end
for _, r in ipairs(cmsgpack.unpack(ARGV[1])) do
  local ms, id
  local known = redis.call('HGET', KEYS[1], r[1])
  if known then ms, id = string.match(known, '^(%d+):(%d+):') else table.insert(answer, r[1]) end
  ms, id = tonumber(ms), tonumber(id)
  if not ms or r[2] > ms or (r[2] == ms and r[3] > id) then redis.call('HSET', KEYS[1], r[1], r[4]) end
end
if redis.call('TTL', KEYS[1]) == -1 then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
return answer
"""
# ARGV: a generation to give a hash that has none, life in seconds, fields. Answers the generation, then the values.
_GET = """
if redis.call('HSETNX', KEYS[1], 'generation', ARGV[1]) == 1 then
  if redis.call('TTL', KEYS[1]) == -1 then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
end
return redis.call('HMGET', KEYS[1], 'generation', unpack(ARGV, 3))
"""
_GET_AT_ONCE = 1_000


class Newest(NamedTuple):
    """A reading without its variable."""

    received_at_ms: int
    id: int
    value: str


_NEVER = Newest(0, 0, "")
"""Of a variable without readings, so that nobody looks again."""


class LatestReadings:
    """A component. Writing is off the acknowledgement's path, so a latest value may be milliseconds late."""

    def __init__(self, database: Database, redis: RedisClient) -> None:
        self._database = database
        self._redis = redis
        self._put = redis.register_script(_PUT)
        self._get = redis.register_script(_GET)
        # Writes that were lost, and how many of them the last drop made good. One: the process before us, maybe.
        self._lost, self._made_good = 1, 0
        self._writes: Batcher[dict[int, Newest], None] = Batcher(
            self._write, max_batch=_MOST_AT_ONCE, max_waiting=_MOST_WAITING, weight=len
        )

    def committed(self, rows: Iterable[Values]) -> None:
        """Takes what one transaction stored, in order of id."""
        newest: dict[int, Values] = {}
        for row in rows:
            variable_id, received_at_ms, *_ = row
            known = newest.get(variable_id)
            if known is None or received_at_ms >= known[1]:
                newest[variable_id] = row
        try:
            self._writes.put({v: Newest(*row[1:4]) for v, row in newest.items()}, lambda _: None)
        except AemosError:
            self.lost()

    def lost(self) -> None:
        """What was stored may not have been taken: a queue is full, or the outcome of a commit is not known."""
        self._lost += 1

    async def get(self, variable_ids: Sequence[int]) -> dict[int, Newest]:
        """The newest reading of each variable that has one: one round trip for 1,000 that Redis knows."""
        found: dict[int, Newest] = {}
        for begin in range(0, len(variable_ids), _GET_AT_ONCE):
            found |= await self._some(variable_ids[begin : begin + _GET_AT_ONCE])
        return found

    async def run(self, stop: asyncio.Event) -> None:
        """Drops the hash as soon as Redis lets us when a write was lost."""
        while not stop.is_set():
            with suppress(RedisError, OSError):
                await self._make_good()
            await wait(stop, _RETRY_SECONDS)

    async def drain(self) -> None:
        """Waits until what was taken is written or lost."""
        await self._writes.drain()

    async def _some(self, variable_ids: Sequence[int]) -> dict[int, Newest]:
        try:
            async with asyncio.timeout(_REDIS_SECONDS):
                await self._make_good()
                arguments: list[str | int] = [uuid4().hex, _LIFE_SECONDS, *variable_ids]
                generation, *values = await self._get(keys=[LATEST_READINGS], args=arguments)
        except (RedisError, OSError):
            return await self._stored(variable_ids)
        known = {v: _parsed(value) for v, value in zip(variable_ids, values, strict=True) if value is not None}
        if missing := [v for v in variable_ids if v not in known]:
            known |= await self._fill(missing, generation)
        return {v: newest for v, newest in known.items() if newest.id}

    async def _fill(self, variable_ids: Sequence[int], generation: bytes) -> dict[int, Newest]:
        stored = await self._stored(variable_ids)
        with suppress(RedisError, OSError):
            await self._add({v: stored.get(v, _NEVER) for v in variable_ids}, generation)
        return stored

    async def _add(self, newest: Mapping[int, Newest], generation: bytes = b"") -> tuple[bytes, list[int]]:
        """Its generation, and the variables that it knew nothing of; of another generation than asked for, none."""
        async with asyncio.timeout(_REDIS_SECONDS):
            arguments: list[bytes | int | str] = [_packed(newest), _LIFE_SECONDS, generation, uuid4().hex]
            found, *missing = await self._put(keys=[LATEST_READINGS], args=arguments) or [b""]
        return found, list(map(int, missing))

    async def _stored(self, variable_ids: Sequence[int]) -> dict[int, Newest]:
        rows = await history_store.newest(self._database, variable_ids)
        return {row.telemetry_data_id: Newest(row.received_at_ms, row.id, row.value) for row in rows}

    async def _write(self, batches: list[dict[int, Newest]]) -> list[None]:
        newest = batches[0]
        for later in batches[1:]:
            newest |= {v: reading for v, reading in later.items() if v not in newest or reading > newest[v]}
        try:
            async with asyncio.timeout(_REDIS_SECONDS):
                await self._make_good()
            generation, missing = await self._add(newest)
            before = now_ms() - _LATE_MS
            if late := [v for v in missing if newest[v].received_at_ms < before]:
                await self._add(await self._stored(late), generation)
        except (RedisError, OSError, AemosError) as error:
            self.lost()
            log.debug("latest readings were dropped: %s", type(error).__name__)
        return [None] * len(batches)

    async def _make_good(self) -> None:
        """Drops the hash when it may be behind."""
        if (lost := self._lost) != self._made_good:
            await self._redis.unlink(LATEST_READINGS)
            self._made_good = lost


def _packed(newest: Mapping[int, Newest]) -> bytes:
    return msgspec.msgpack.encode(
        [(str(v), ms, reading_id, f"{ms}:{reading_id}:{text}") for v, (ms, reading_id, text) in newest.items()]
    )


def _parsed(value: bytes) -> Newest:
    ms, reading_id, text = value.split(b":", 2)
    return Newest(int(ms), int(reading_id), text.decode())
