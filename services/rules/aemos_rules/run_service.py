"""Use cases of runs: what was recorded, why a chain does what it does, and what it would do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from zlib import crc32

from aemos.v1 import data_stream_pb2, history_pb2, history_pb2_grpc, sensor_pb2, sensor_pb2_grpc
from aemos_core.database import Database
from aemos_core.errors import invalid, not_found, unavailable
from aemos_core.identity import caller
from aemos_core.paging import Page
from aemos_core.redis_link import RedisClient
from aemos_core.times import now_ms, to_timestamp
from redis.exceptions import RedisError

from aemos_rules import chain_store, run_store
from aemos_rules.activity import activity_key
from aemos_rules.chain_service import RuleChains
from aemos_rules.contexts import Asked, Contexts
from aemos_rules.domain import Reading, RuleChain
from aemos_rules.dry_run import Tried, dry_run
from aemos_rules.engine import CompiledChain, compile_chain
from aemos_rules.explain import Start, explained
from aemos_rules.memory import Memory
from aemos_rules.run import Context, World
from aemos_rules.run_store import AnyRow

MOST_READINGS = 1_000
OUTCOMES = ("fired", "stopped", "error", "loop")


class MadeUp(NamedTuple):
    """A reading as a user names it. `value` None: the stored one, at `at_ms` or the newest (0)."""

    sensor_uuid: str
    variable_name: str
    value: Any
    at_ms: int


class ChainRuns:
    """Runs of the caller's organization. Nothing here is executed."""

    def __init__(
        self,
        database: Database,
        redis: RedisClient,
        chains: RuleChains,
        sensors: sensor_pb2_grpc.SensorServiceAsyncStub,
        history: history_pb2_grpc.HistoryServiceAsyncStub,
        partitions: int,
    ) -> None:
        self._database = database
        self._redis = redis
        self._chains = chains
        self._sensors = sensors
        self._history = history
        self._contexts = Contexts(database, history)
        self._partitions = partitions

    async def page(self, chain_id: int, outcome: str, page: Page) -> tuple[Sequence[AnyRow], str]:
        """A page of a chain's recorded runs, newest first, and the token of the next."""
        if outcome and outcome not in OUTCOMES:
            raise invalid("outcome", f"must be one of {', '.join(OUTCOMES)}")
        async with self._database.read() as connection:
            await chain_store.get(connection, caller().organization_id, chain_id)
            return page.cut(await run_store.page(connection, chain_id, outcome, page.after, page.limit))

    async def get(self, run_id: int) -> AnyRow:
        """A recorded run."""
        async with self._database.read() as connection:
            return await run_store.get(connection, caller().organization_id, run_id)

    async def activity(self, chain_id: int) -> tuple[RuleChain, Mapping[str, int], Sequence[Mapping[str, Any]]]:
        """The chain, its counts, and its last runs that changed nothing, newest first."""
        chain = await self._chain(chain_id)
        try:
            found: dict[bytes, bytes] = await self._redis.hgetall(activity_key(chain_id))  # type: ignore[assignment]
        except (RedisError, OSError) as error:
            raise unavailable("the counts did not answer") from error
        idle = json.loads(found.pop(b"idle", b"[]"))
        return chain, {name.decode(): int(count) for name, count in found.items()}, idle

    async def explain(self, chain_id: int, wanted: MadeUp) -> tuple[RuleChain, Tried]:
        """What a saved chain does with a reading now: with what it remembers and knows."""
        chain = compile_chain(await self._chain(chain_id))
        (reading,) = await self._readings([wanted])
        asked, partition = Asked(), crc32(reading.device_uuid.encode()) % self._partitions
        asked.add(partition, chain, reading)
        memory = await Memory(self._database).look(asked.cells)
        world = World(now_ms(), partition, memory, await self._contexts.fetch(asked))
        start = Start(reading)
        return chain.chain, Tried(start, *explained(chain, start, world))

    async def dry_run(self, chain: RuleChain | int, wanted: Sequence[MadeUp]) -> tuple[RuleChain, list[Tried]]:
        """What a chain, saved (by id) or not, does with readings in their order."""
        if len(wanted) > MOST_READINGS:
            raise invalid("readings", f"must be at most {MOST_READINGS}")
        compiled = await self._compiled(chain)
        readings = await self._readings(wanted)
        context = await self._context(compiled, readings)
        return compiled.chain, list(dry_run(compiled, readings, now_ms(), context))

    async def _compiled(self, chain: RuleChain | int) -> CompiledChain:
        if isinstance(chain, int):
            return compile_chain(await self._chain(chain))
        return await self._chains.checked(chain)

    async def _chain(self, chain_id: int) -> RuleChain:
        return chain_store.chain_of(await self._chains.get(chain_id))

    async def _context(self, chain: CompiledChain, readings: Sequence[Reading]) -> Context | None:
        asked = Asked()
        for reading in readings:
            asked.add(0, chain, reading)
        return await self._contexts.fetch(asked)

    async def _readings(self, wanted: Sequence[MadeUp]) -> list[Reading]:
        """With the ids of what they name; INVALID for a sensor or variable that the organization has not."""
        organization_id, uuids = caller().organization_id, sorted({one.sensor_uuid for one in wanted})
        if not uuids:
            return []
        known = await self._sensors.DescribeSensors(
            sensor_pb2.DescribeSensorsRequest(organization_id=organization_id, sensor_uuids=uuids)
        )
        types = {one.sensor_uuid: dict(one.variable_types) for one in known.sensors}
        request = history_pb2.GetContextRequest(organization_id=organization_id, sensor_uuids=uuids)
        contexts = {one.sensor.uuid: one for one in (await self._history.GetContext(request)).sensors}
        readings = []
        for index, one in enumerate(wanted):
            kind = types.get(one.sensor_uuid, {}).get(one.variable_name)
            if kind is None or one.sensor_uuid not in contexts:
                raise invalid(f"readings.{index}", "no such sensor or variable")
            readings.append(await self._reading(index, one, kind, contexts[one.sensor_uuid]))
        return readings

    async def _reading(self, index: int, one: MadeUp, kind: str, of: history_pb2.SensorContext) -> Reading:
        latest = of.latest.get(one.variable_name)
        at_ms, value, reading_id = one.at_ms or now_ms(), one.value, 0
        if value is None:
            stored = await self._stored(one) if one.at_ms else latest
            if stored is None:
                raise not_found("reading")
            at_ms, value, reading_id = stored.recieved_at.ToMilliseconds(), stored.value, stored.id
        return Reading(
            reading_id or index + 1,
            caller().organization_id,
            of.sensor.device_id,
            of.sensor.device_uuid,
            of.sensor.id,
            of.sensor.uuid,
            latest.telemetry_data_id if latest else 0,
            one.variable_name,
            kind,  # type: ignore[arg-type]
            _typed(value, kind),
            at_ms,
            b"",
        )

    async def _stored(self, one: MadeUp) -> data_stream_pb2.Reading | None:
        query = data_stream_pb2.QueryReadingsRequest(
            sensor_uuid=[one.sensor_uuid], variable_name=[one.variable_name], page_size=1
        )
        getattr(query, "from").CopyFrom(to_timestamp(one.at_ms))
        query.to.CopyFrom(to_timestamp(one.at_ms + 1))
        request = history_pb2.QueryHistoryRequest(organization_id=caller().organization_id, query=query)
        found = (await self._history.QueryHistory(request)).readings
        return found[0] if found else None


def _typed(value: Any, kind: str) -> Any:
    """As the judge has it: a number, a text, true or false, or JSON."""
    try:
        if kind == "number":
            return float(value)
        if kind == "boolean":
            return value if isinstance(value, bool) else {"true": True, "false": False}[str(value)]
        if kind == "json":
            return json.loads(value) if isinstance(value, str) else value
    except (TypeError, ValueError, KeyError):
        raise invalid("value", f"the variable is {kind}", "wrong_type") from None
    return str(value)
