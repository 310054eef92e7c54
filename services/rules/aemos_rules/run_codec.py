"""Messages of the contract to and from runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from aemos.v1 import chain_run_pb2 as pb
from aemos_core.errors import invalid
from aemos_core.times import to_timestamp
from google.protobuf import json_format

from aemos_rules.domain import RuleChain
from aemos_rules.dry_run import Tried
from aemos_rules.explain import described
from aemos_rules.run_service import MadeUp
from aemos_rules.run_store import AnyRow


def made_up(reading: pb.MadeUpReading) -> MadeUp:
    """A reading to try."""
    if not reading.sensor_uuid or not reading.variable_name:
        raise invalid("reading", "needs sensorUuid and variableName")
    value = json_format.MessageToDict(reading.value) if reading.HasField("value") else None
    at_ms = reading.recieved_at.ToMilliseconds() if reading.HasField("recieved_at") else 0
    return MadeUp(reading.sensor_uuid, reading.variable_name, value, at_ms)


def run_to_pb(row: AnyRow) -> pb.ChainRun:
    """A recorded run."""
    run = pb.ChainRun(
        id=row.id,
        rule_chain_id=row.rule_chain_id,
        version=row.version,
        trigger=row.trigger_kind,
        data_stream_id=row.data_stream_id,
        device_uuid=row.device_uuid,
        sensor_uuid=row.sensor_uuid,
        outcome=row.outcome,
        error=row.error,
        at=to_timestamp(row.at_ms),
        recorded_at=to_timestamp(row.recorded_at_ms),
        trace_id=row.trace_id,
    )
    detail = json.loads(row.detail)
    _add(run, detail["nodes"], detail["effects"])
    return run


def tried_to_pb(chain: RuleChain, tried: Tried) -> pb.ChainRun:
    """A run that was only tried."""
    start, result, nodes = tried
    reading = start.reading
    run = pb.ChainRun(
        rule_chain_id=chain.id,
        version=chain.version,
        trigger=start.trigger,
        data_stream_id=reading.id if reading else 0,
        device_uuid=reading.device_uuid if reading else "",
        sensor_uuid=reading.sensor_uuid if reading else "",
        outcome=result.outcome,
        error=result.error,
        at=to_timestamp(start.deadline_ms or start.moment),
    )
    _add(run, [node._asdict() for node in nodes], described(result.effects))
    return run


def _add(run: pb.ChainRun, nodes: Sequence[dict[str, Any]], effects: Sequence[dict[str, Any]]) -> None:
    for node in nodes:
        values = node.pop("values")
        run.nodes.add(**node).values.update(values)
    for effect in effects:
        run.effects.add().update(effect)


def activity_to_pb(chain: RuleChain, counts: Mapping[str, int], idle: Sequence[Mapping[str, Any]]) -> pb.ChainActivity:
    """What a chain did lately."""
    activity = pb.ChainActivity(
        fired=counts.get("fired", 0),
        stopped=counts.get("stopped", 0),
        failed=counts.get("failed", 0),
        not_recorded=counts.get("not_recorded", 0),
    )
    for one in idle:
        run = activity.idle_runs.add(
            rule_chain_id=chain.id,
            version=chain.version,
            trigger="reading" if one["reading"] else "schedule",
            data_stream_id=one["reading"],
            device_uuid=one["device"],
            sensor_uuid=one["sensor"],
            outcome=one["outcome"],
            at=to_timestamp(one["at"]),
        )
        if one["node"]:
            run.nodes.add(name=one["node"]).values.update({"value": one["value"]})
    return activity
