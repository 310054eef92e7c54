"""Which chains judge a sensor: in memory, in Redis for an hour, and at last from the database."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from aemos_core.database import Database
from aemos_core.names import RULE_CHAINS_CHANGED, RULE_CHAINS_VERSION, rule_chain_index
from aemos_core.outbox import Row
from aemos_core.redis_link import RedisClient
from aemos_core.waiting import wait
from redis.exceptions import RedisError

from aemos_rules import chain_store
from aemos_rules.activity import Activities
from aemos_rules.domain import InvalidChain, RuleChain
from aemos_rules.engine import CompiledChain, compile_chain

log = logging.getLogger("aemos.rules")

CHAINS_CHANGED = "chains-changed"
_HOUR = 3600
_POLL_SECONDS = 5.0
_MOST = 100_000
_AT_ONCE = 200

# KEYS: version, then index entries. ARGV: the version at which they were read, seconds, then the entries.
# An entry that was read before a change must not be written after it: it would be believed for an hour.
_FILL = """
if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[1] then return 0 end
for i = 2, #KEYS do redis.call('SET', KEYS[i], ARGV[i + 1], 'EX', ARGV[2]) end
return 1
"""


class Judges(NamedTuple):
    """Chains by sensor, and the sensors some of whose chains remember something or ask for context."""

    of: dict[str, tuple[CompiledChain, ...]]
    asking: set[str]


class ChainIndex:
    """A component of a worker: compiled chains by sensor. A change is seen by a message, or within 5 s without one."""

    def __init__(self, database: Database, redis: RedisClient, activities: Activities) -> None:
        self._database = database
        self._activities = activities
        self._redis = redis
        self._fill = redis.register_script(_FILL)
        self._version: bytes | str = b""
        self.forget()

    async def judges_of(self, sensor_uuids: Iterable[str]) -> Judges:
        """The enabled chains of each sensor; brings what is missing to memory."""
        if len(self._judges.of) > _MOST:
            self.forget()
        judges = self._judges
        missing = sorted({uuid for uuid in sensor_uuids if uuid not in judges.of})
        if missing:
            await self._learn(missing, judges)
        return judges

    async def compiled(self, chain_ids: Iterable[int]) -> dict[int, CompiledChain]:
        """Chains by id; those that are gone, or no longer compile, are left out."""
        wanted, kept = set(chain_ids), self._compiled
        known = {chain_id: kept[chain_id] for chain_id in wanted & kept.keys()}
        missing = sorted(wanted - known.keys())
        for first in range(0, len(missing), _AT_ONCE):  # in between the worker does other things, and may forget
            some = missing[first : first + _AT_ONCE]
            async with self._database.read() as connection:
                chains = await chain_store.load(connection, some)
            fresh = dict.fromkeys(some) | {chain.id: self._compile(chain) for chain in chains}
            kept |= fresh
            known |= fresh
        return {chain_id: chain for chain_id, chain in known.items() if chain is not None}

    def _compile(self, chain: RuleChain) -> CompiledChain | None:
        try:
            compiled = compile_chain(chain)
        except InvalidChain as error:
            log.error("rule chain %d does not compile: %s", chain.id, error)
            return None
        compiled.activity = self._activities.of(chain)
        return compiled

    def forget(self, _: bytes = b"") -> None:
        """Something changed, or we may have missed that it did. What is being learned meanwhile is kept by nobody."""
        self._judges = Judges({}, set())
        self._compiled: dict[int, CompiledChain | None] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Notices changes whose message was missed."""
        while not await wait(stop, _POLL_SECONDS):
            try:
                version = await self._redis.get(RULE_CHAINS_VERSION) or b"0"
            except (RedisError, OSError):
                continue
            if version != self._version:
                self._version = version
                self.forget()

    async def _learn(self, sensor_uuids: Sequence[str], judges: Judges) -> None:
        keys = [rule_chain_index(uuid) for uuid in sensor_uuids]
        version, *entries = await self._redis.mget(RULE_CHAINS_VERSION, *keys)
        ids = {uuid: json.loads(entry) for uuid, entry in zip(sensor_uuids, entries, strict=True) if entry is not None}
        unknown = [uuid for uuid in sensor_uuids if uuid not in ids]
        if unknown:
            async with self._database.read() as connection:
                found = await chain_store.chains_of(connection, unknown)
            fresh = {uuid: found.get(uuid, []) for uuid in unknown}
            await self._remember(version or b"0", fresh)
            ids.update(fresh)
        compiled = await self.compiled({chain_id for chain_ids in ids.values() for chain_id in chain_ids})
        for uuid, chain_ids in ids.items():
            judges.of[uuid] = chains = tuple(compiled[each] for each in chain_ids if each in compiled)
            if not all(chain.plain for chain in chains):
                judges.asking.add(uuid)

    async def _remember(self, version: bytes | str, entries: dict[str, list[int]]) -> None:
        keys = [RULE_CHAINS_VERSION, *map(rule_chain_index, entries)]
        await self._fill(keys=keys, args=[version, _HOUR, *map(json.dumps, entries.values())])


async def tell(redis: RedisClient, changes: Sequence[bytes]) -> None:
    """Tells Redis and every worker that chains changed; each change is a JSON list of the sensors concerned."""
    uuids = {uuid for change in changes for uuid in json.loads(change)}
    async with redis.pipeline(transaction=True) as pipe:
        pipe.incr(RULE_CHAINS_VERSION)
        if uuids:
            pipe.delete(*map(rule_chain_index, uuids))
        pipe.publish(RULE_CHAINS_CHANGED, b"")
        await pipe.execute()


def chains_changed(sensor_uuids: Iterable[str]) -> Row:
    """The outbox row of a change to chains that judge these sensors."""
    return Row(CHAINS_CHANGED, 0, json.dumps(sorted(sensor_uuids)).encode())
