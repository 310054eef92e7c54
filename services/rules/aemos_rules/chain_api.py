"""RuleChainService of the contract: what users do with the chains of their organization, and scheduler with all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aemos.v1 import rule_chain_pb2 as pb
from aemos.v1 import rule_chain_pb2_grpc
from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind, invalid
from aemos_core.identity import Caller, caller, set_caller
from aemos_core.outbox import OutboxRows
from aemos_core.paging import page_of
from aemos_core.records import fitting, listed, own
from aemos_core.rpc import Context
from aemos_core.times import now_ms
from sqlalchemy import select

from aemos_rules import chain_store, codec
from aemos_rules import tables as t
from aemos_rules.chain_check import ChainCheck
from aemos_rules.chain_index import chains_changed
from aemos_rules.domain import RuleChain
from aemos_rules.nodes import node_types

_MOST_SCHEDULES = 10_000


class RuleChainServicer(rule_chain_pb2_grpc.RuleChainServiceServicer):
    """Rule chains."""

    def __init__(self, database: Database, outbox: OutboxRows, check: ChainCheck) -> None:
        self._database = database
        self._outbox = outbox
        self._check = check

    async def CreateRuleChain(self, request: pb.CreateRuleChainRequest, context: Context) -> pb.RuleChain:
        draft = codec.draft_from_pb(request)
        _refuse_past(draft.run_at_ms)
        return await self._save(_counted_from_now(draft))

    async def GetRuleChain(self, request: pb.GetRuleChainRequest, context: Context) -> pb.RuleChain:
        async with self._database.read() as connection:
            return codec.chain_to_pb(await chain_store.get_version(connection, request.id, request.version))

    async def ListRuleChains(self, request: pb.ListRuleChainsRequest, context: Context) -> pb.ListRuleChainsResponse:
        query = select(t.rule_chain).where(t.rule_chain.c.organization_id == caller().organization_id)
        async with self._database.read() as connection:
            rows, token = await listed(connection, query, t.rule_chain.c.id, page_of(request))
        chains, token = fitting(map(codec.chain_to_pb, rows), token)
        return pb.ListRuleChainsResponse(rule_chains=chains, next_page_token=token)

    async def UpdateRuleChain(self, request: pb.UpdateRuleChainRequest, context: Context) -> pb.RuleChain:
        async with self._database.read() as connection:
            chain = chain_store.chain_of(await own(connection, t.rule_chain, request.id))
        changes = codec.changes_from_pb(request)
        _refuse_past(changes.get("run_at_ms", 0))
        draft = replace(chain, **changes, version=chain.version + 1)
        return await self._save(draft if draft.schedule == chain.schedule else _counted_from_now(draft), chain)

    async def DeleteRuleChain(self, request: pb.DeleteRuleChainRequest, context: Context) -> pb.DeleteRuleChainResponse:
        async with self._database.write() as connection:
            await own(connection, t.rule_chain, request.id, lock=True)
            judged = await chain_store.sensors_of(connection, request.id)
            await chain_store.remove(connection, request.id)
            rows = await self._outbox.add(connection, [chains_changed(judged)])
        self._outbox.committed(rows)
        return pb.DeleteRuleChainResponse()

    async def ListNodeTypes(self, request: pb.ListNodeTypesRequest, context: Context) -> pb.ListNodeTypesResponse:
        kinds: Any = [kind._asdict() for kind in node_types()]
        return pb.ListNodeTypesResponse(node_types=kinds)

    async def ListSchedules(self, request: pb.ListSchedulesRequest, context: Context) -> pb.ListSchedulesResponse:
        now, page = now_ms(), page_of(request, _MOST_SCHEDULES)
        async with self._database.read() as connection:
            rows, token = await listed(connection, chain_store.SCHEDULES, t.rule_chain.c.id, page)
        schedules = map(codec.schedule_to_pb, rows)
        return pb.ListSchedulesResponse(schedules=schedules, next_page_token=token, now_ms=now)

    async def ListScheduleChanges(
        self, request: pb.ListScheduleChangesRequest, context: Context
    ) -> pb.ListScheduleChangesResponse:
        now = now_ms()
        async with self._database.read() as connection:
            found = await chain_store.schedule_changes(connection, request.since_ms, now)
        if found is None:
            return pb.ListScheduleChangesResponse(incomplete=True, now_ms=now)
        schedules = map(codec.schedule_to_pb, found[0])
        return pb.ListScheduleChangesResponse(schedules=schedules, removed_rule_chain_ids=found[1], now_ms=now)

    async def SetSchedulePaused(
        self, request: pb.SetSchedulePausedRequest, context: Context
    ) -> pb.SetSchedulePausedResponse:
        set_caller(Caller(request.organization_id, request.user_id, "service"))
        async with self._database.write() as connection:
            await own(connection, t.rule_chain, request.rule_chain_id)
            await chain_store.pause(connection, request.rule_chain_id, request.paused)
            rows = await self._outbox.add(connection, [chains_changed([])])
            saved = await own(connection, t.rule_chain, request.rule_chain_id)
        self._outbox.committed(rows)
        return pb.SetSchedulePausedResponse(schedule=codec.schedule_to_pb(saved))

    async def _save(self, draft: RuleChain, before: RuleChain | None = None) -> pb.RuleChain:
        compiled = await self._check.checked(draft)
        async with self._database.write() as connection:
            if before and chain_store.chain_of(await own(connection, t.rule_chain, draft.id, lock=True)) != before:
                raise AemosError(Kind.STALE, "the rule chain was changed meanwhile")
            changed = compiled.sensor_uuids.union(await chain_store.sensors_of(connection, draft.id))
            chain_id = await chain_store.save(connection, draft, compiled.sensor_uuids)
            rows = await self._outbox.add(connection, [chains_changed(changed)])
            saved = await own(connection, t.rule_chain, chain_id)
        self._outbox.committed(rows)
        return codec.chain_to_pb(saved)


def _counted_from_now(draft: RuleChain) -> RuleChain:
    """A schedule as it becomes now: what would have been due before was never missed."""
    now = now_ms()
    anchor = draft.interval_anchor_ms or (now // 1000 * 1000 if draft.interval_seconds else 0)
    return replace(draft, schedule_since_ms=now, interval_anchor_ms=anchor)


def _refuse_past(run_at_ms: int) -> None:
    if 0 != run_at_ms <= now_ms():
        raise invalid("runAt", "must be in the future")
