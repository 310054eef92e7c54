"""Rule chains as the contract has them, to and from what rules knows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from aemos.v1 import rule_chain_pb2 as pb
from aemos_core.identity import caller
from aemos_core.records import AnyRow, message
from google.protobuf import json_format

from aemos_rules.domain import Connection, Node, RuleChain

_MOMENTS = {"interval_anchor": "interval_anchor_ms", "run_at": "run_at_ms"}
_TIMINGS = {"cron_expression": "", "interval_seconds": 0, "run_at_ms": 0}


def nodes_from_pb(nodes: Iterable[pb.Node]) -> tuple[Node, ...]:
    """Nodes of a draft; those without a name get one."""
    return tuple(
        Node(node.type, node.name or f"{node.type} {place}", json_format.MessageToDict(node.config))
        for place, node in enumerate(nodes, 1)
    )


def connections_from_pb(connections: Iterable[pb.NodeConnection]) -> tuple[Connection, ...]:
    """Connections of a draft."""
    return tuple(Connection(getattr(one, "from"), one.outcome, one.to) for one in connections)


def draft_from_pb(request: pb.CreateRuleChainRequest) -> RuleChain:
    """A chain to create, in the caller's organization."""
    return RuleChain(0, caller().organization_id, **changes_from_pb(request))


def changes_from_pb(request: pb.CreateRuleChainRequest | pb.UpdateRuleChainRequest) -> dict[str, Any]:
    """The fields of a chain that a request gives. Times are cut to the whole second: at others nothing is due."""
    changes = {field.name: value for field, value in request.ListFields() if field.name != "id"}
    for field in _MOMENTS.keys() & changes:
        changes[_MOMENTS[field]] = changes.pop(field).seconds * 1000
    if any(changes.get(field) for field in _TIMINGS):
        changes = _TIMINGS | changes
    if request.nodes:
        changes["nodes"] = nodes_from_pb(request.nodes)
    if request.nodes or request.connections:
        changes["connections"] = connections_from_pb(request.connections)
    return changes


def chain_to_pb(row: AnyRow) -> pb.RuleChain:
    """A chain."""
    given: dict[str, Any] = {} if row.interval_seconds else {"interval_anchor": None}
    connections = [
        {"from": one["origin"], "outcome": one["outcome"], "to": one["target"]}
        for one in json.loads(row.connections or "[]")
    ]
    return message(pb.RuleChain, row, nodes=json.loads(row.nodes), connections=connections, **given)


def schedule_to_pb(row: AnyRow) -> pb.Schedule:
    """A schedule."""
    return message(pb.Schedule, row, rule_chain_id=row.id, paused=row.schedule_paused, since_ms=row.schedule_since_ms)
