"""ChainRunService of the contract: what was recorded of runs, why a chain does what it does, and what it would do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from zlib import crc32

from aemos.v1 import chain_run_pb2 as pb
from aemos.v1 import chain_run_pb2_grpc
from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind, invalid, unavailable
from aemos_core.paging import page_of
from aemos_core.records import MOST_BYTES, AnyRow, fitting, listed, message, own
from aemos_core.redis_link import RedisClient
from aemos_core.rpc import Context
from aemos_core.times import now_ms, to_timestamp
from redis.exceptions import RedisError
from sqlalchemy import select

from aemos_rules import chain_store, codec
from aemos_rules import tables as t
from aemos_rules.activity import activity_key
from aemos_rules.chain_check import ChainCheck
from aemos_rules.contexts import Asked, Contexts
from aemos_rules.domain import RuleChain
from aemos_rules.engine import compile_chain
from aemos_rules.explain import Explained, dry_run, explained
from aemos_rules.made_up import MadeUpReadings
from aemos_rules.memory import Memory
from aemos_rules.run import Start, World

MOST_READINGS = 1_000
OUTCOMES = ("fired", "stopped", "error", "loop")


class ChainRunServicer(chain_run_pb2_grpc.ChainRunServiceServicer):
    """Runs of the caller's organization. Nothing here is executed."""

    def __init__(
        self,
        database: Database,
        redis: RedisClient,
        check: ChainCheck,
        made_up: MadeUpReadings,
        contexts: Contexts,
        partitions: int,
    ) -> None:
        self._database = database
        self._redis = redis
        self._check = check
        self._made_up = made_up
        self._contexts = contexts
        self._partitions = partitions

    async def ListChainRuns(self, request: pb.ListChainRunsRequest, context: Context) -> pb.ListChainRunsResponse:
        if request.outcome not in ("", *OUTCOMES):
            raise invalid("outcome", f"must be one of {', '.join(OUTCOMES)}")
        query = select(t.chain_run).where(t.chain_run.c.rule_chain_id == request.rule_chain_id)
        if request.outcome:
            query = query.where(t.chain_run.c.outcome == request.outcome)
        async with self._database.read() as connection:
            await own(connection, t.rule_chain, request.rule_chain_id)
            rows, token = await listed(connection, query, t.chain_run.c.id, page_of(request), newest_first=True)
        runs, token = fitting(map(_recorded, rows), token)
        return pb.ListChainRunsResponse(chain_runs=runs, next_page_token=token)

    async def GetChainRun(self, request: pb.GetChainRunRequest, context: Context) -> pb.ChainRun:
        async with self._database.read() as connection:
            return _recorded(await own(connection, t.chain_run, request.id))

    async def GetChainActivity(self, request: pb.GetChainActivityRequest, context: Context) -> pb.ChainActivity:
        chain = await self._chain(request.rule_chain_id)
        try:
            found: dict[bytes, bytes] = await self._redis.hgetall(activity_key(chain.id))  # type: ignore[assignment]
        except (RedisError, OSError) as error:
            raise unavailable("the counts did not answer") from error
        idle = json.loads(found.pop(b"idle", b"[]"))
        counts = {name.decode(): int(count) for name, count in found.items()}
        return pb.ChainActivity(**counts, idle_runs=[_idle(chain, one) for one in idle])

    async def ExplainReading(self, request: pb.ExplainReadingRequest, context: Context) -> pb.ChainRun:
        """What a saved chain does with a reading now: with what it remembers and knows."""
        chain = compile_chain(await self._chain(request.rule_chain_id))
        (reading,) = await self._made_up.judged([request.reading])
        asked, partition = Asked(), crc32(reading.device_uuid.encode()) % self._partitions
        asked.add(partition, chain, reading)
        memory = await Memory(self._database).look(asked.cells)
        world = World(now_ms(), partition, memory, await self._contexts.fetch(asked))
        return _tried(explained(chain, Start(reading), world))

    async def DryRunChain(self, request: pb.DryRunChainRequest, context: Context) -> pb.DryRunChainResponse:
        """What a chain, saved or not, does with readings in their order."""
        if bool(request.rule_chain_id) == request.HasField("chain"):
            raise invalid("ruleChainId", "either ruleChainId or chain must be given")
        if len(request.readings) > MOST_READINGS:
            raise invalid("readings", f"must be at most {MOST_READINGS}")
        if request.rule_chain_id:
            chain = compile_chain(await self._chain(request.rule_chain_id))
        else:
            chain = await self._check.checked(codec.draft_from_pb(request.chain))
        readings, asked = await self._made_up.judged(request.readings), Asked()
        for reading in readings:
            asked.add(0, chain, reading)
        runs, size = list[pb.ChainRun](), 0
        for run in map(_tried, dry_run(chain, readings, now_ms(), await self._contexts.fetch(asked))):
            runs.append(run)
            size += run.ByteSize()
            if size > MOST_BYTES:
                raise AemosError(Kind.TOO_LARGE, f"{len(runs)} runs do not fit into an answer: try fewer readings")
            await asyncio.sleep(0)  # many deadlines may come in between: others have their turn, and the call its end
        return pb.DryRunChainResponse(chain_runs=runs)

    async def _chain(self, chain_id: int) -> RuleChain:
        async with self._database.read() as connection:
            return chain_store.chain_of(await own(connection, t.rule_chain, chain_id))


def _recorded(row: AnyRow) -> pb.ChainRun:
    return message(pb.ChainRun, row, **_detail(json.loads(row.detail)))


def _tried(run: Explained) -> pb.ChainRun:
    return pb.ChainRun(**run.facts, **_detail(run.detail), at=to_timestamp(run.start.deadline_ms or run.start.moment))


def _detail(detail: dict[str, Any]) -> dict[str, Any]:
    """A node that showed nothing has no values."""
    return detail | {"nodes": [{**node, "values": node["values"] or None} for node in detail["nodes"]]}


def _idle(chain: RuleChain, one: Mapping[str, Any]) -> pb.ChainRun:
    """A run that changed nothing."""
    return pb.ChainRun(
        rule_chain_id=chain.id,
        version=chain.version,
        trigger="reading" if one["reading"] else "schedule",
        data_stream_id=one["reading"],
        device_uuid=one["device"],
        sensor_uuid=one["sensor"],
        outcome=one["outcome"],
        at=to_timestamp(one["at"]),
        nodes=[{"name": one["node"], "values": {"value": str(one["value"])}}] if one["node"] else [],  # type: ignore[list-item]
    )
