"""The graph of a chain: its nodes in an order in which each comes after all that lead to it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from .domain import Connection, Node, RuleChain

Errors: TypeAlias = list[tuple[str, str]]
MAX_CONNECTIONS = 500


class Graph(NamedTuple):
    """`order` are node indexes; `targets` has, by node index and outcome, the nodes that run next; `entries` begin."""

    order: Sequence[int]
    targets: Sequence[Mapping[str, frozenset[int]]]
    entries: frozenset[int]


def graph_of(chain: RuleChain, outcomes: Sequence[Sequence[str]]) -> tuple[Graph, Errors]:
    """The chain's graph and what is wrong with it; `outcomes` are those that each of its nodes has."""
    if not chain.connections:
        return _in_order(outcomes), []
    names = {node.name: index for index, node in enumerate(chain.nodes)}
    errors = name_mistakes(chain.nodes) + _mistakes(chain.connections, names, outcomes)
    targets: list[dict[str, frozenset[int]]] = [{} for _ in outcomes]
    if errors:
        return Graph((), targets, frozenset()), errors
    for connection in chain.connections:
        of = targets[names[connection.origin]]
        of[connection.outcome] = of.get(connection.outcome, frozenset()) | {names[connection.target]}
    led_to = frozenset[int]().union(*(found for of in targets for found in of.values()))
    entries = frozenset(range(len(targets))) - led_to
    order = _sorted(targets, entries)
    for index in sorted(entries):
        if not targets[index] and len(targets) > 1:
            errors.append((f"nodes.{index}.name", f"'{chain.nodes[index].name}' has no connection"))
    for index in sorted(set(names.values()) - set(order)):
        errors.append((f"nodes.{index}.name", f"'{chain.nodes[index].name}' is part of a cycle, or behind one"))
    return Graph(order, targets, entries), errors


def name_mistakes(nodes: Sequence[Node]) -> Errors:
    """Names that connections and memory could not tell apart."""
    errors: Errors = []
    seen: set[str] = set()
    for index, node in enumerate(nodes):
        if not node.name.strip() or len(node.name) > 200:
            errors.append((f"nodes.{index}.name", "must have 1 to 200 characters"))
        elif node.name in seen:
            errors.append((f"nodes.{index}.name", f"'{node.name}' is the name of an earlier node too"))
        seen.add(node.name)
    return errors


def _in_order(outcomes: Sequence[Sequence[str]]) -> Graph:
    """A plain list: what a filter lets pass, and what succeeded, goes on to the next node."""
    last = len(outcomes) - 1
    targets = [{of[0]: frozenset({index + 1})} if index < last else {} for index, of in enumerate(outcomes)]
    return Graph(range(len(outcomes)), targets, frozenset({0} if outcomes else ()))


def _mistakes(connections: Sequence[Connection], names: Mapping[str, int], outcomes: Sequence[Sequence[str]]) -> Errors:
    if len(connections) > MAX_CONNECTIONS:
        return [("connections", f"more than {MAX_CONNECTIONS}")]
    errors: Errors = []
    for index, connection in enumerate(connections):
        for field, name in (("from", connection.origin), ("to", connection.target)):
            if name not in names:
                errors.append((f"connections.{index}.{field}", f"no node is named '{name}'"))
        of = outcomes[names[connection.origin]] if connection.origin in names else (connection.outcome,)
        if connection.outcome not in of:
            errors.append((f"connections.{index}.outcome", f"must be one of {', '.join(of)}"))
    return errors


def _sorted(targets: Sequence[Mapping[str, frozenset[int]]], entries: frozenset[int]) -> list[int]:
    """Topological order (Kahn), nodes as they were written where there is a choice; without those in cycles."""
    waiting = [0] * len(targets)
    for of in targets:
        for target in frozenset[int]().union(*of.values()):
            waiting[target] += 1
    ready, order = sorted(entries, reverse=True), []
    while ready:
        index = ready.pop()
        order.append(index)
        freed = []
        for target in frozenset[int]().union(*targets[index].values()):
            waiting[target] -= 1
            if not waiting[target]:
                freed.append(target)
        ready = sorted([*ready, *freed], reverse=True)
    return order
