"""Messages of the contract to and from what rules knows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from aemos.v1 import alarm_pb2, device_state_pb2, report_pb2, rule_chain_pb2
from aemos_core.identity import caller
from aemos_core.times import to_timestamp
from aemos_core.timing import MISFIRE_POLICIES, OVERLAP_POLICIES
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from aemos_rules.alarm_store import AlarmQuery
from aemos_rules.chain_store import AnyRow
from aemos_rules.domain import Connection, Node, RuleChain
from aemos_rules.nodes.registry import NodeType

_OPTIONAL = ("name", "enabled", "schedule_enabled", "cron_expression", "timezone", "interval_seconds", "misfire_policy",
             "overlap_policy", "schedule_paused")  # fmt: skip
_MOMENTS = {"interval_anchor": "interval_anchor_ms", "run_at": "run_at_ms"}
_TIMINGS = {"cron_expression": "", "interval_seconds": 0, "run_at_ms": 0}


def nodes_from_pb(nodes: Iterable[rule_chain_pb2.Node]) -> tuple[Node, ...]:
    """Nodes of a draft; those without a name get one."""
    return tuple(
        Node(node.type, node.name or f"{node.type} {place}", json_format.MessageToDict(node.config))
        for place, node in enumerate(nodes, 1)
    )


def connections_from_pb(connections: Iterable[rule_chain_pb2.NodeConnection]) -> tuple[Connection, ...]:
    """Connections of a draft."""
    return tuple(Connection(getattr(one, "from"), one.outcome, one.to) for one in connections)


def draft_from_pb(request: rule_chain_pb2.CreateRuleChainRequest) -> RuleChain:
    """A chain to create, in the caller's organization."""
    return RuleChain(
        id=0,
        organization_id=caller().organization_id,
        name=request.name,
        enabled=request.enabled if request.HasField("enabled") else True,
        version=1,
        nodes=nodes_from_pb(request.nodes),
        connections=connections_from_pb(request.connections),
        schedule_enabled=request.schedule_enabled,
        cron_expression=request.cron_expression,
        timezone=request.timezone or "UTC",
        interval_seconds=request.interval_seconds,
        misfire_policy=request.misfire_policy or MISFIRE_POLICIES[0],
        overlap_policy=request.overlap_policy or OVERLAP_POLICIES[0],
        schedule_paused=request.schedule_paused,
        **_moments(request),
    )


def changes_from_pb(request: rule_chain_pb2.UpdateRuleChainRequest) -> dict[str, Any]:
    """The fields that an update gives."""
    changes = {field: getattr(request, field) for field in _OPTIONAL if request.HasField(field)}  # type: ignore[arg-type]
    changes |= _moments(request)
    given = [field for field in _TIMINGS if changes.get(field)]
    others = {field: empty for field, empty in _TIMINGS.items() if field not in changes} if given else {}
    if request.nodes:
        changes["nodes"] = nodes_from_pb(request.nodes)
    if request.nodes or request.connections:
        changes["connections"] = connections_from_pb(request.connections)
    return changes | others


def _moments(request: rule_chain_pb2.CreateRuleChainRequest | rule_chain_pb2.UpdateRuleChainRequest) -> dict[str, int]:
    """Its times, cut to the whole second: at others nothing is due."""
    given = [field for field in _MOMENTS if request.HasField(field)]  # type: ignore[arg-type]
    return {_MOMENTS[field]: getattr(request, field).seconds * 1000 for field in given}


def chain_to_pb(row: AnyRow) -> rule_chain_pb2.RuleChain:
    """A chain."""
    chain = rule_chain_pb2.RuleChain(
        id=row.id,
        name=row.name,
        enabled=row.enabled,
        schedule_enabled=row.schedule_enabled,
        cron_expression=row.cron_expression,
        timezone=row.timezone,
        version=row.version,
        suspension=row.suspension,
        created_at=to_timestamp(row.created_at_ms),
        interval_seconds=row.interval_seconds,
        interval_anchor=to_timestamp(row.interval_anchor_ms) if row.interval_seconds else None,
        run_at=to_timestamp(row.run_at_ms) if row.run_at_ms else None,
        misfire_policy=row.misfire_policy,
        overlap_policy=row.overlap_policy,
        schedule_paused=row.schedule_paused,
    )
    for node in json.loads(row.nodes):
        added = chain.nodes.add(type=node["type"], name=node["name"])
        added.config.update(node["config"])
    for one in json.loads(row.connections or "[]"):
        chain.connections.add(**{"from": one["origin"], "outcome": one["outcome"], "to": one["target"]})
    return chain


def node_type_to_pb(kind: NodeType) -> rule_chain_pb2.NodeType:
    """A kind of node."""
    message = rule_chain_pb2.NodeType(
        type=kind.type, kind=kind.kind, description=kind.description, outcomes=kind.outcomes
    )
    message.config_schema.update(kind.config_schema)
    return message


def schedule_to_pb(row: AnyRow) -> rule_chain_pb2.Schedule:
    """A schedule."""
    return rule_chain_pb2.Schedule(
        rule_chain_id=row.id,
        organization_id=row.organization_id,
        cron_expression=row.cron_expression,
        timezone=row.timezone,
        interval_seconds=row.interval_seconds,
        interval_anchor_ms=row.interval_anchor_ms,
        run_at_ms=row.run_at_ms,
        misfire_policy=row.misfire_policy,
        overlap_policy=row.overlap_policy,
        paused=row.schedule_paused,
        since_ms=row.schedule_since_ms,
    )


def report_to_pb(row: AnyRow) -> report_pb2.Report:
    """What a report is about."""
    return report_pb2.Report(
        id=row.id,
        rule_chain_id=row.rule_chain_id,
        title=row.title,
        period_start=to_timestamp(row.from_ms),
        period_end=to_timestamp(row.to_ms),
        created_at=to_timestamp(row.created_at_ms),
        expires_at=to_timestamp(row.expires_at_ms),
    )


def state_to_pb(row: AnyRow) -> device_state_pb2.DeviceState:
    """A device state."""
    return device_state_pb2.DeviceState(
        id=row.id,
        device_id=row.device_id,
        device_uuid=row.device_uuid,
        name=row.name,
        default_value=row.default_value,
        value=row.value,
        changed_at=_moment(row.changed_at_ms),
    )


def instance_to_pb(row: AnyRow) -> device_state_pb2.DeviceStateInstance:
    """A change of a state."""
    return device_state_pb2.DeviceStateInstance(
        id=row.id,
        device_state_id=row.device_state_id,
        value=row.value,
        old_value=row.old_value,
        timestamp=to_timestamp(row.at_ms),
        rule_chain_id=row.rule_chain_id,
        data_stream_id=row.data_stream_id,
        chain_run_id=row.chain_run_id,
        user_id=row.user_id,
    )


def alarm_query(request: alarm_pb2.ListAlarmsRequest) -> AlarmQuery:
    """Which alarms a request asks for."""
    return AlarmQuery(
        device_uuid=request.device_uuid,
        active=request.active if request.HasField("active") else None,
        acknowledged=request.acknowledged if request.HasField("acknowledged") else None,
        severity=request.severity,
        type=request.type,
    )


def alarm_to_pb(row: AnyRow) -> alarm_pb2.Alarm:
    """An alarm."""
    return alarm_pb2.Alarm(
        id=row.id,
        device_id=row.device_id,
        device_uuid=row.device_uuid,
        type=row.type,
        severity=row.severity,
        active=row.active,
        acknowledged=row.acknowledged_at_ms is not None,
        message=row.message,
        raised_at=to_timestamp(row.raised_at_ms),
        cleared_at=_moment(row.cleared_at_ms),
        acknowledged_at=_moment(row.acknowledged_at_ms),
        rule_chain_id=row.rule_chain_id,
        data_stream_id=row.data_stream_id,
    )


def alarm_event_to_pb(row: AnyRow) -> alarm_pb2.AlarmEvent:
    """One thing that happened to an alarm."""
    return alarm_pb2.AlarmEvent(
        id=row.id,
        type=row.type,
        severity=row.severity,
        at=to_timestamp(row.at_ms),
        rule_chain_id=row.rule_chain_id,
        data_stream_id=row.data_stream_id,
        user_id=row.user_id,
    )


def _moment(ms: int | None) -> Timestamp | None:
    return None if ms is None else to_timestamp(ms)
