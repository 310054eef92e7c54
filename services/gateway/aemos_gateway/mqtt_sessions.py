"""Sessions that are to be kept, in Redis: any gateway goes on with them, also after this one was killed.

Keys (gateway): `mqtt-sessions:{deviceUuid}`, client id to session, each for a day after its last sign of life. Channel
(gateway): `mqtt-sessions:taken`, a replica's name and the session that a connection of it took over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from aemos_core.notification_log import LogId, parse_log_id
from aemos_core.redis_link import RedisClient
from aemos_core.settings import process_name
from aemos_core.times import now_ms
from redis.exceptions import RedisError

log = logging.getLogger("aemos.gateway.mqtt")

TAKEN = "mqtt-sessions:taken"
KEPT_SECONDS = 24 * 60 * 60
MOST_OF_DEVICE = 32
"""Sessions of one device: one more takes the place of the one that was silent for longest."""
MOST_UNSAVED = 100_000
"""Sessions whose newest state Redis does not have yet."""
_AT_ONCE = 500
_AGAIN_SECONDS = 1.0
_LOAD_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Kept:
    """What outlives a connection."""

    granted: Mapping[str, int]
    """Topic to QoS."""
    place: LogId
    """Notifications up to here are acknowledged, or not for the session."""
    number: int
    """Packet id of the one after them."""


class _Stored(msgspec.Struct):
    topics: dict[str, int]
    place: str
    number: int
    at: int
    """Its last sign of life, ms."""


_decode = msgspec.json.Decoder(_Stored).decode


class Sessions:
    """Reads and writes them. What changes while a write is under way forms the next one, each session once."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._name = process_name()
        self._unsaved: dict[str, tuple[Kept | None, list[Callable[[], None]]]] = {}
        self._taken: list[str] = []
        self._saving: asyncio.Task[None] | None = None

    async def load(self, key: str) -> Kept | None:
        """The session; None when there is none. Raises redis.RedisError, OSError or TimeoutError."""
        if key in self._unsaved:
            return self._unsaved[key][0]
        async with asyncio.timeout(_LOAD_SECONDS):
            return await self._read(key)

    def save(self, key: str, kept: Kept | None, saved: Callable[[], None] | None = None) -> None:
        """Remembers it; `saved` is called when that is durable, however long Redis is away."""
        waiting = self._unsaved[key][1] if key in self._unsaved else []
        self._unsaved[key] = kept, waiting if saved is None else [*waiting, saved]
        self._start()

    def drop(self, key: str) -> None:
        """Forgets it."""
        if len(self._unsaved) < MOST_UNSAVED:
            self.save(key, None)

    def take(self, key: str) -> None:
        """Tells the other gateways that the session's connection is here now."""
        if len(self._taken) < MOST_UNSAVED:
            self._taken.append(key)
            self._start()

    def taken_elsewhere(self, message: bytes) -> str:
        """The session that another gateway took over, and that is no more ours to save; empty when it was this one."""
        name, _, key = message.decode().partition(" ")
        if name == self._name:
            return ""
        self._unsaved.pop(key, None)
        return key

    async def drain(self, seconds: float) -> None:
        """Waits until all is saved, so long at the most."""
        if self._saving is not None:
            await asyncio.wait([self._saving], timeout=seconds)

    async def close(self) -> None:
        """Gives up what is not saved."""
        if self._saving is not None:
            self._saving.cancel()
            await asyncio.wait([self._saving])

    def _start(self) -> None:
        if self._saving is None or self._saving.done():
            self._saving = asyncio.get_running_loop().create_task(self._save_all())

    async def _save_all(self) -> None:
        while self._unsaved or self._taken:
            batch = {key: self._unsaved[key] for key in list(self._unsaved)[:_AT_ONCE]}
            try:
                taken, self._taken = self._taken, []
                await self._write({key: kept for key, (kept, _) in batch.items()}, taken)
            except (RedisError, OSError) as error:
                log.warning("mqtt sessions wait to be saved: %s", type(error).__name__)
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            for key, (kept, waiting) in batch.items():
                newest = self._unsaved.get(key)
                if newest is not None and newest[0] is kept:
                    del self._unsaved[key]
                elif newest is not None:
                    self._unsaved[key] = newest[0], newest[1][len(waiting) :]
                for saved in waiting:
                    saved()

    async def _read(self, key: str) -> Kept | None:
        device, _, client = key.partition("/")
        found: Any = await self._redis.hgetall(_redis_key(device))
        sessions = {name.decode(): _decode(value) for name, value in found.items()}
        long_ago = now_ms() - KEPT_SECONDS * 1000
        newest = sorted(sessions, key=lambda name: (name == client, sessions[name].at), reverse=True)
        most = MOST_OF_DEVICE - (client not in sessions)
        gone = [name for i, name in enumerate(newest) if i >= most or sessions[name].at < long_ago]
        if gone:
            await self._redis.hdel(_redis_key(device), *gone)
        mine = sessions.get(client)
        if mine is None or client in gone:
            return None
        return Kept(mine.topics, parse_log_id(mine.place, "place"), mine.number)

    async def _write(self, batch: Mapping[str, Kept | None], taken: list[str]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for key in taken:
                pipe.publish(TAKEN, f"{self._name} {key}")
            for key, kept in batch.items():
                device, _, client = key.partition("/")
                if kept is None:
                    pipe.hdel(_redis_key(device), client)
                else:
                    stored = _Stored(dict(kept.granted), str(kept.place), kept.number, now_ms())
                    pipe.hset(_redis_key(device), client, msgspec.json.encode(stored))
                    pipe.expire(_redis_key(device), KEPT_SECONDS)
            await pipe.execute()


def _redis_key(device_uuid: str) -> str:
    return f"mqtt-sessions:{device_uuid}"
