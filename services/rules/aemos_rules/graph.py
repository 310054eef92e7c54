"""The graph of a chain: its nodes in an order in which each comes after all that lead to it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

from .domain import Connection, Errors, InvalidChain, Node, RuleChain

MAX_CONNECTIONS = 500


class Graph(NamedTuple):
    """`order` are node indexes; `targets` has, by node index and outcome, the nodes that run next; `entries` begin."""

    order: Sequence[int]
    targets: Sequence[Mapping[str, frozenset[int]]]
    entries: frozenset[int]


def graph_of(chain: RuleChain, outcomes: Sequence[Sequence[str]]) -> Graph:
    """The chain's graph; `outcomes` are those that each of its nodes has. Raises InvalidChain."""
    if not chain.connections:
        return _in_order(outcomes)
    names = {node.name: index for index, node in enumerate(chain.nodes)}
    if errors := name_mistakes(chain.nodes) + _mistakes(chain.connections, names, outcomes):
        raise InvalidChain(errors)
    targets: list[dict[str, frozenset[int]]] = [{} for _ in outcomes]
    for connection in chain.connections:
        of = targets[names[connection.origin]]
        of[connection.outcome] = of.get(connection.outcome, frozenset()) | {names[connection.target]}
    led_to = frozenset[int]().union(*(found for of in targets for found in of.values()))
    entries = frozenset(range(len(targets))) - led_to
    order = _sorted(targets)
    alone = [index for index in sorted(entries) if not targets[index] and len(targets) > 1]
    errors += [(f"nodes.{index}.name", f"'{chain.nodes[index].name}' has no connection") for index in alone]
    for index in sorted(set(names.values()) - set(order)):
        errors.append((f"nodes.{index}.name", f"'{chain.nodes[index].name}' is part of a cycle, or behind one"))
    if errors:
        raise InvalidChain(errors)
    return Graph(order, targets, entries)


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


def _sorted(targets: Sequence[Mapping[str, frozenset[int]]]) -> list[int]:
    """Topological order, nodes as they were written where there is a choice; without those in cycles."""
    sorter = TopologicalSorter[int]({index: () for index in range(len(targets))})
    for index, of in enumerate(targets):
        for target in frozenset[int]().union(*of.values()):
            sorter.add(target, index)
    with suppress(CycleError):  # it goes on with what can be sorted
        sorter.prepare()
    ready, order = list(sorter.get_ready()), []
    while ready:
        order.append(min(ready))
        ready.remove(order[-1])
        sorter.done(order[-1])
        ready += sorter.get_ready()
    return order
