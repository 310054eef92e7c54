"""Worker processes share the partitions of the rule engine's queues by leases in Redis, each holding its fair share."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from uuid import uuid4

import redis

from aemos_core.redis_link import RedisClient
from aemos_core.waiting import wait

KEY_PREFIX = "aemos:leases"
LEASE_S = 10.0
RENEW_S = 3.0
MARGIN_S = 1.0
HURRY_S = 0.5
CALL_TIMEOUT_S = 2.0

log = logging.getLogger(__name__)

# KEYS: members, then the owner of each partition. ARGV: this member, lease in ms. Answers {share, partition held, ...}.
# A member's share depends on its rank among the sorted names, so the shares of all add up to the number of partitions.
RENEW = """
local time, me, lease = redis.call('TIME'), ARGV[1], tonumber(ARGV[2])
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + lease, me)
redis.call('PEXPIRE', KEYS[1], 2 * lease)
local members, partitions, rank = redis.call('ZRANGE', KEYS[1], 0, -1), #KEYS - 1, 0
for _, member in ipairs(members) do if member < me then rank = rank + 1 end end
local share = math.floor(partitions / #members)
if rank < partitions % #members then share = share + 1 end
local answer, free = {share}, {}
for p = 0, partitions - 1 do
  local owner = redis.call('GET', KEYS[p + 2])
  if owner == me then
    redis.call('PEXPIRE', KEYS[p + 2], lease)
    table.insert(answer, p)
  elseif not owner then table.insert(free, p) end
end
for _, p in ipairs(free) do
  if #answer - 1 < share then
    redis.call('SET', KEYS[p + 2], me, 'PX', lease)
    table.insert(answer, p)
  end
end
return answer
"""

# KEYS: the owners of the partitions given up. ARGV: this member.
RELEASE = """
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then redis.call('DEL', key) end
end
"""


class PartitionLeases:
    """Holds this process' share of `partitions` partitions: a component, and `holds` for the threads that fetch.

    A lease is renewed every `renew_s` (after 0.5 s while the share is not full) and ends locally `margin_s` before
    Redis ends it: two processes never hold the same partition, however long one was stuck. A newcomer has its share
    after about one renewal; a dead member's is taken over within a lease and a renewal. While Redis cannot be
    reached the leases lapse; they come back with it. `on_gain` is called on the event loop when partitions were
    gained.
    """

    def __init__(
        self,
        client: RedisClient,
        partitions: int,
        *,
        prefix: str = KEY_PREFIX,
        member: str = "",
        on_gain: Callable[[], None] = lambda: None,
        lease_s: float = LEASE_S,
        renew_s: float = RENEW_S,
        margin_s: float = MARGIN_S,
    ) -> None:
        self._members = f"{prefix}:members"
        self._owners = [f"{prefix}:partition:{partition}" for partition in range(partitions)]
        self._member = member or f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._on_gain = on_gain
        self._lease_s, self._renew_s, self._margin_s = lease_s, renew_s, margin_s
        self._client = client
        self._renew_script = client.register_script(RENEW)
        self._release_script = client.register_script(RELEASE)
        # One attribute, so that a thread never sees new partitions with an old deadline.
        self._state: tuple[frozenset[int], float] = (frozenset(), 0.0)

    def holds(self, partition: int) -> bool:
        """Whether this process may work on `partition` (0-based) now. No I/O; any thread."""
        return partition in self.held()

    def held(self) -> frozenset[int]:
        """The partitions held now. No I/O; any thread."""
        partitions, until = self._state
        return partitions if time.monotonic() < until else frozenset()

    async def run(self, stop: asyncio.Event) -> None:
        """Renews until `stop` is set, then gives everything back so that others need not wait for the lease to end."""
        try:
            while not stop.is_set():
                pause_s = await self._renew()
                await wait(stop, pause_s)
        finally:
            await self._leave()

    async def _renew(self) -> float:
        """Returns the seconds to wait before the next renewal."""
        began = time.monotonic()  # before the call: Redis starts counting later, never earlier
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                share, *mine = await self._renew_script(
                    keys=[self._members, *self._owners], args=[self._member, int(self._lease_s * 1000)]
                )
                self._take(mine[:share], until=began + self._lease_s - self._margin_s)
                await self._release(mine[share:])
        except (redis.RedisError, OSError, TimeoutError) as error:
            log.warning("leases not renewed: %r; holding %s", error, sorted(self.held()))
            return min(HURRY_S, self._renew_s)
        return self._renew_s if len(mine) >= share else min(HURRY_S, self._renew_s)

    def _take(self, partitions: Iterable[int], until: float) -> None:
        before, now = self.held(), frozenset(partitions)
        self._state = (now, until)
        if before != now:
            log.info("leases held: %s", sorted(now))
        if now - before:
            self._on_gain()

    async def _release(self, partitions: Iterable[int]) -> None:
        """Only after `_take` without them: nobody may take over what this process still works on."""
        keys = [self._owners[partition] for partition in partitions]
        if keys:
            await self._release_script(keys=keys, args=[self._member])

    async def _leave(self) -> None:
        self._take((), until=0.0)
        with suppress(redis.RedisError, OSError, TimeoutError):  # what cannot be given back ends by itself
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._client.zrem(self._members, self._member)
                await self._release(range(len(self._owners)))
