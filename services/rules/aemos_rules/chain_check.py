"""Whether a chain can be what its author wrote."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from aemos.v1 import sensor_pb2, sensor_pb2_grpc
from aemos_core.database import Database
from aemos_core.errors import FieldError, invalid, refuse
from aemos_core.timing import check_policies
from sqlalchemy import select

from aemos_rules import tables
from aemos_rules.domain import Errors, InvalidChain, RuleChain
from aemos_rules.engine import CompiledChain, compile_chain
from aemos_rules.graph import name_mistakes

_MOST_NAME = 200


class ChainCheck:
    """What is saved or tried compiles, and names only what exists in its organization."""

    def __init__(self, database: Database, sensors: sensor_pb2_grpc.SensorServiceAsyncStub) -> None:
        self._database = database
        self._sensors = sensors

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
        refuse([FieldError(*error) for error in errors], reason="invalid_chain")
        assert compiled is not None  # or there was an error
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


def _compiled(draft: RuleChain, types: Mapping[tuple[str, str], str]) -> tuple[Errors, CompiledChain | None]:
    named = name_mistakes(draft.nodes)
    try:
        return named, compile_chain(draft, types)  # type: ignore[arg-type]
    except InvalidChain as error:
        return list(dict.fromkeys([*named, *error.errors])), None


def _forgetful(compiled: CompiledChain) -> Errors:
    """Nodes that remember readings, in a chain that runs on its schedule only: they would stop every run, but for
    actions."""
    if not compiled.chain.schedule_enabled or compiled.sensor_uuids:
        return []
    return [
        (f"nodes.{index}.config.{'kind' if node.family == 'filter' else 'action'}", "needs readings to remember")
        for index, node in enumerate(compiled.nodes)
        if node.remembers and node.family != "action"
    ]


_WHAT = {"sensorUUID": "no such sensor", "deviceStateId": "no such device state", "ruleChainId": "no such rule chain"}


def _missing(draft: RuleChain, field: str, known: Collection[object]) -> Errors:
    """What nodes name and the organization does not have, or, of rule chains, the chain itself."""
    return [
        (f"nodes.{index}.config.{where}", _WHAT[field])
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
