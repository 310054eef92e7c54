"""Use cases of rule chains."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from aemos.v1 import sensor_pb2, sensor_pb2_grpc
from aemos_core.database import Database
from aemos_core.errors import AemosError, FieldError, Kind, invalid
from aemos_core.identity import caller
from aemos_core.outbox import OutboxRows
from aemos_core.paging import Page
from aemos_core.times import now_ms
from aemos_core.timing import check_policies, refuse
from sqlalchemy import select

from aemos_rules import chain_store, tables
from aemos_rules.chain_index import chains_changed
from aemos_rules.chain_store import AnyRow
from aemos_rules.domain import RuleChain
from aemos_rules.engine import CompiledChain, InvalidChain, compile_chain
from aemos_rules.graph import name_mistakes

_MOST_NAME = 200
Errors = list[FieldError]


class RuleChains:
    """Chains of the caller's organization. What is saved compiles, and names only what exists."""

    def __init__(self, database: Database, outbox: OutboxRows, sensors: sensor_pb2_grpc.SensorServiceAsyncStub) -> None:
        self._database = database
        self._outbox = outbox
        self._sensors = sensors

    async def create(self, draft: RuleChain) -> AnyRow:
        """Saves a new chain; INVALID names every node and field that is wrong."""
        _refuse_past({"run_at_ms": draft.run_at_ms})
        return await self._save(_counted_from_now(draft), ())

    async def update(self, chain_id: int, changes: Mapping[str, object]) -> AnyRow:
        """Saves a chain with some of its fields changed, as its next version."""
        row = await self.get(chain_id)
        chain = chain_store.chain_of(row)
        draft = replace(chain, **changes, version=chain.version + 1)  # type: ignore[arg-type]
        _refuse_past(changes)
        if draft.schedule != chain.schedule:
            draft = _counted_from_now(draft)
        async with self._database.read() as connection:
            judged_before = await chain_store.sensors_of(connection, chain_id)
        return await self._save(draft, judged_before)

    async def get(self, chain_id: int, version: int = 0) -> Any:
        """A chain, as it is or as it was in a version."""
        async with self._database.read() as connection:
            return await chain_store.get_version(connection, caller().organization_id, chain_id, version)

    async def page(self, page: Page) -> tuple[Sequence[AnyRow], str]:
        """A page of chains and the token of the next."""
        async with self._database.read() as connection:
            return page.cut(await chain_store.page(connection, caller().organization_id, page.after, page.limit))

    async def delete(self, chain_id: int) -> None:
        """Removes a chain."""
        async with self._database.write() as connection:
            await chain_store.get(connection, caller().organization_id, chain_id)
            judged = await chain_store.sensors_of(connection, chain_id)
            await chain_store.remove(connection, chain_id)
            rows = await self._outbox.add(connection, [chains_changed(judged)])
        self._outbox.committed(rows)

    async def pause(self, chain_id: int, paused: bool) -> AnyRow:
        """Pauses or resumes a chain's schedule."""
        async with self._database.write() as connection:
            await chain_store.get(connection, caller().organization_id, chain_id)
            await chain_store.pause(connection, chain_id, paused)
            rows = await self._outbox.add(connection, [chains_changed([])])
            saved = await chain_store.get(connection, caller().organization_id, chain_id)
        self._outbox.committed(rows)
        return saved

    async def schedule_changes(self, since_ms: int) -> tuple[tuple[Sequence[AnyRow], list[int]] | None, int]:
        """See chain_store.schedule_changes; and the time to ask from next."""
        now = now_ms()
        async with self._database.read() as connection:
            return await chain_store.schedule_changes(connection, since_ms, now), now

    async def schedules(self, page: Page) -> tuple[Sequence[AnyRow], str]:
        """A page of every organization's enabled schedules and the token of the next."""
        async with self._database.read() as connection:
            return page.cut(await chain_store.schedules(connection, page.after, page.limit))

    async def _save(self, draft: RuleChain, judged_before: Iterable[str]) -> AnyRow:
        compiled = await self.checked(draft)
        changed = compiled.sensor_uuids.union(judged_before)
        async with self._database.write() as connection:
            chain_id = await chain_store.save(connection, draft, compiled.sensor_uuids)
            rows = await self._outbox.add(connection, [chains_changed(changed)])
            saved = await chain_store.get(connection, caller().organization_id, chain_id)
        self._outbox.committed(rows)
        return saved

    async def checked(self, draft: RuleChain) -> CompiledChain:
        """The chain compiled; INVALID names every node and field that is wrong."""
        if not 0 < len(draft.name) <= _MOST_NAME:
            raise invalid("name", f"must have 1 to {_MOST_NAME} characters")
        if not draft.nodes:
            raise invalid("nodes", "must be at least one")
        scheduled = draft.schedule_enabled or draft.cron_expression or draft.interval_seconds or draft.run_at_ms
        refuse((draft.timing.check() if scheduled else []) + check_policies(draft.misfire_policy, draft.overlap_policy))
        sensors = await self._described(draft)
        types = {(uuid, name): kind for uuid, known in sensors.items() for name, kind in known.items()}
        errors, compiled = _compiled(draft, types)
        errors += _missing(draft, "sensorUUID", sensors)
        if compiled is not None:
            errors += _forgetful(compiled)
            states, chains = await self._known(draft.organization_id, compiled)
            errors += _missing(draft, "deviceStateId", states) + _missing(draft, "ruleChainId", chains - {draft.id})
        if errors or compiled is None:
            detail = "; ".join(f"{error.loc}: {error.message}" for error in errors)
            raise AemosError(Kind.INVALID, detail, reason="invalid_chain", errors=errors)
        return compiled

    async def _described(self, draft: RuleChain) -> dict[str, dict[str, str]]:
        named = {
            uuid for node in draft.nodes for _, uuid in _values(node.config, "sensorUUID") if isinstance(uuid, str)
        }
        request = sensor_pb2.DescribeSensorsRequest(organization_id=draft.organization_id, sensor_uuids=sorted(named))
        answer = await self._sensors.DescribeSensors(request)
        return {sensor.sensor_uuid: dict(sensor.variable_types) for sensor in answer.sensors}

    async def _known(self, organization_id: int, compiled: CompiledChain) -> tuple[set[int], set[int]]:
        """Which of the states and chains that it names exist in the organization."""
        wanted = ((tables.device_state, compiled.device_state_ids), (tables.rule_chain, compiled.rule_chain_ids))
        known = []
        async with self._database.read() as connection:
            for table, ids in wanted:
                query = select(table.c.id).where(table.c.organization_id == organization_id, table.c.id.in_(list(ids)))
                known.append(set((await connection.execute(query)).scalars()) if ids else set())
        return known[0], known[1]


def _counted_from_now(draft: RuleChain) -> RuleChain:
    """A schedule as it becomes now: what would have been due before was never missed."""
    now = now_ms()
    anchor = draft.interval_anchor_ms or (now // 1000 * 1000 if draft.interval_seconds else 0)
    return replace(draft, schedule_since_ms=now, interval_anchor_ms=anchor)


def _refuse_past(changes: Mapping[str, object]) -> None:
    run_at = changes.get("run_at_ms")
    if isinstance(run_at, int) and 0 != run_at <= now_ms():
        raise invalid("runAt", "must be in the future")


def _compiled(draft: RuleChain, types: Mapping[tuple[str, str], str]) -> tuple[Errors, CompiledChain | None]:
    named = name_mistakes(draft.nodes)
    try:
        compiled = compile_chain(draft, types)  # type: ignore[arg-type]
    except InvalidChain as error:
        return [FieldError(where, what) for where, what in dict.fromkeys([*named, *error.errors])], None
    return [FieldError(where, what) for where, what in named], compiled


def _forgetful(compiled: CompiledChain) -> Errors:
    """Nodes that remember readings, in a chain that runs on its schedule only: they would stop every run."""
    if not compiled.chain.schedule_enabled or compiled.sensor_uuids:
        return []
    return [
        FieldError(
            f"nodes.{index}.config.{'kind' if node.family == 'filter' else 'action'}", "needs readings to remember"
        )
        for index, node in enumerate(compiled.nodes)
        if node.remembers
    ]


_WHAT = {"sensorUUID": "no such sensor", "deviceStateId": "no such device state", "ruleChainId": "no such rule chain"}


def _missing(draft: RuleChain, field: str, known: Collection[object]) -> Errors:
    """What nodes name and the organization does not have, or, of rule chains, the chain itself."""
    return [
        FieldError(f"nodes.{index}.config.{where}", _WHAT[field])
        for index, node in enumerate(draft.nodes)
        for where, named in _values(node.config, field)
        if isinstance(named, (str, int, float)) and named not in known
    ]


def _values(config: Mapping[str, object], field: str, within: str = "") -> Iterator[tuple[str, object]]:
    """(where, value) of each field of this name in a configuration."""
    for name, value in config.items():
        if name == field:
            yield f"{within}{name}", value
        elif isinstance(value, Mapping):
            yield from _values(value, field, f"{within}{name}.")
