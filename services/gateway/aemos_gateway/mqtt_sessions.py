"""Sessions that are to be kept, in Redis: any gateway goes on with them, also after this one was killed.

Keys (gateway): `mqtt-sessions:{deviceUuid}`, client id to session, each for a day after its last sign of life. Channel
(gateway): `mqtt-sessions:taken`, a replica's name and the session that a connection of it took over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from itertools import islice
from typing import Any

import msgspec
from aemos_core.errors import AemosError
from aemos_core.redis_link import RedisClient, end
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


async def work_off(step: Callable[[], Awaitable[bool]]) -> None:
    """Repeats a step until it says that there is no more to do; every second while Redis is away."""
    more = True
    while more:
        try:
            more = await step()
        except (RedisError, OSError, AemosError) as error:
            log.warning("mqtt sessions wait for Redis: %s", type(error).__name__)
            await asyncio.sleep(_AGAIN_SECONDS)


class Kept(msgspec.Struct, frozen=True):
    """What outlives a connection."""

    topics: dict[str, int]
    """Those it is granted, each with its QoS."""
    place: str
    """Notifications up to here in the log are acknowledged, or not for the session."""
    number: int
    """Packet id of the one after them."""
    at: int
    """The last sign of life, ms since 1970 UTC."""


_decode = msgspec.json.Decoder(Kept).decode


class Sessions:
    """Reads and writes them. What changes while a write is under way forms the next one, each session once."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._name = process_name()
        self._unsaved: dict[str, tuple[Kept | None, tuple[Callable[[], None], ...]]] = {}
        self._taken: list[str] = []
        self._task: asyncio.Task[None] | None = None

    async def load(self, key: str) -> Kept | None:
        """The session; None when there is none. Raises redis.RedisError, OSError or TimeoutError."""
        if key in self._unsaved:
            return self._unsaved[key][0]
        async with asyncio.timeout(_LOAD_SECONDS):
            return await self._read(key)

    def save(self, key: str, kept: Kept | None, *saved: Callable[[], None]) -> None:
        """Remembers it; `saved` is called when that is durable, however long Redis is away."""
        _, waiting = self._unsaved.get(key, (None, ()))
        self._unsaved[key] = kept, (*waiting, *saved)
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
        if self._task is not None:
            await asyncio.wait([self._task], timeout=seconds)

    async def close(self) -> None:
        """Gives up what is not saved."""
        if self._task is not None:
            await end(self._task)

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(work_off(self._step))

    async def _step(self) -> bool:
        if not self._unsaved and not self._taken:
            return False
        batch = dict(islice(self._unsaved.items(), _AT_ONCE))
        taken = list(self._taken)
        await self._write({key: kept for key, (kept, _) in batch.items()}, taken)
        del self._taken[: len(taken)]
        for key, (kept, waiting) in batch.items():
            newest, others = self._unsaved.pop(key, (kept, ()))
            if newest is not kept:
                self._unsaved[key] = newest, others[len(waiting) :]
            for saved in waiting:
                saved()
        return True

    async def _read(self, key: str) -> Kept | None:
        device, _, client = key.partition("/")
        found: Any = await self._redis.hgetall(_redis_key(device))
        sessions = {name.decode(): _decode(value) for name, value in found.items()}
        long_ago = now_ms() - KEPT_SECONDS * 1000
        alive = {name for name, kept in sessions.items() if kept.at >= long_ago}
        others = sorted(alive - {client}, key=lambda name: sessions[name].at)[1 - MOST_OF_DEVICE :]
        if gone := sessions.keys() - {client, *others}:
            await self._redis.hdel(_redis_key(device), *gone)
        return sessions[client] if client in alive else None

    async def _write(self, batch: Mapping[str, Kept | None], taken: list[str]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for key in taken:
                pipe.publish(TAKEN, f"{self._name} {key}")
            for key, kept in batch.items():
                device, _, client = key.partition("/")
                if kept is None:
                    pipe.hdel(_redis_key(device), client)
                else:
                    pipe.hset(_redis_key(device), client, msgspec.json.encode(kept))
                    pipe.expire(_redis_key(device), KEPT_SECONDS)
            await pipe.execute()


def _redis_key(device_uuid: str) -> str:
    return f"mqtt-sessions:{device_uuid}"
