"""How far states and alarms were asserted by equal values, in Redis.

The database has the watermark of the last change. Equal values, which are nearly all, advance only this one, so they
cost no write to the database; when Redis loses it, a late reading may count until the next one comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypeVar

from aemos_core.redis_link import RedisClient

from aemos_rules.domain import Watermark

K = TypeVar("K", int, str)
Marks: TypeAlias = Mapping[K, Watermark]


class Watermarks:
    """A Redis hash: by key the greatest watermark that an equal value left, "ms:reading:chain"."""

    def __init__(self, redis: RedisClient, key: str) -> None:
        self._redis = redis
        self._key = key

    async def of(self, keys: Sequence[K]) -> dict[K, Watermark]:
        """Those that there are."""
        found = await self._redis.hmget(self._key, list(keys)) if keys else []
        return {key: _watermark(mark) for key, mark in zip(keys, found, strict=True) if mark is not None}

    async def advance(self, before: Marks[K], now: Marks[K]) -> None:
        """Notes those that moved."""
        moved = {key: mark for key, mark in now.items() if mark != before.get(key)}
        if moved:
            await self._redis.hset(self._key, mapping={key: _text(mark) for key, mark in moved.items()})


def _text(watermark: Watermark) -> bytes:
    return b"%d:%d:%d" % watermark


def _watermark(text: bytes | str) -> Watermark:
    at, reading, chain = (text.decode() if isinstance(text, bytes) else text).split(":")
    return int(at), int(reading), int(chain)
