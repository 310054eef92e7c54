"""What chains did lately: counted in the worker, where every run passes, and written to Redis every two seconds."""

from __future__ import annotations

import asyncio
import logging

import msgspec
from aemos_core.redis_link import RedisClient
from aemos_core.waiting import wait
from redis.exceptions import RedisError

from aemos_rules.domain import RuleChain
from aemos_rules.engine import IDLE_RUN, Activity

log = logging.getLogger("aemos.rules")

_FLUSH_SECONDS = 2.0
_AT_ONCE = 100
"""Chains a flush writes; of more that are active each has its turn."""
_KEPT_SECONDS = 7 * 24 * 60 * 60
_FIELDS = ("fired", "stopped", "failed", "not_recorded")


def activity_key(chain_id: int) -> str:
    """Redis hash (rules): counts of a chain's runs, and in `idle` the last that changed nothing."""
    return f"rulechain:activity:{chain_id}"


class Activities:
    """A component: the activity of each chain that this worker runs."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._of: dict[int, Activity] = {}

    def of(self, chain: RuleChain) -> Activity:
        """That of a chain; a new version has not failed yet."""
        activity = self._of.setdefault(chain.id, Activity())
        if activity.version != chain.version:
            activity.version, activity.failing = chain.version, set()
        return activity

    async def run(self, stop: asyncio.Event) -> None:
        """Writes until told to stop, and then what is left."""
        while True:
            stopped = await wait(stop, _FLUSH_SECONDS)
            try:
                while await self._flush() and stopped:
                    pass
            except (RedisError, OSError) as error:
                log.warning("counts of runs are not written: %s", type(error).__name__)
            if stopped:
                return

    async def _flush(self) -> bool:
        """Writes some; whether there was something to write."""
        fresh = [chain_id for chain_id, activity in self._of.items() if activity.is_fresh][:_AT_ONCE]
        if not fresh:
            return False
        written: list[tuple[Activity, str, int]] = []
        async with self._redis.pipeline(transaction=False) as pipe:
            for chain_id in fresh:
                activity, key = self._of.pop(chain_id), activity_key(chain_id)
                self._of[chain_id] = activity  # to the end: the others come first the next time
                for field in _FIELDS:
                    if count := getattr(activity, field):
                        pipe.hincrby(key, field, count)
                        written.append((activity, field, count))
                idle = [dict(zip(IDLE_RUN, run, strict=True)) for run in reversed(activity.idle)]
                pipe.hset(key, "idle", msgspec.json.encode(idle))
                pipe.expire(key, _KEPT_SECONDS)
            await pipe.execute()
        for activity, field, count in written:  # more may have come meanwhile
            setattr(activity, field, getattr(activity, field) - count)
        return True
