"""Chains, compiled once and run on every reading: pure functions of (chain, reading)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from .domain import NodeFailed, Reading, RuleChain, StateAssertion
from .nodes import Errors, InvalidConfig, NodeKind, Run, VariableTypes, make_node

MAX_NODES = 100


class InvalidChain(Exception):
    """The chain is refused; `errors` holds (where, what) of every mistake, as in ("nodes.0.type", "...")."""

    def __init__(self, errors: Errors) -> None:
        super().__init__("; ".join(f"{where}: {what}" for where, what in errors))
        self.errors = errors


class RunResult(NamedTuple):
    """How a run ended, where (`node_index` from 0, None when fired), and what follows from it.

    A stopped run keeps the effects of the actions before the stop; one that failed has none.
    """

    outcome: Literal["fired", "stopped", "error"]
    effects: tuple[StateAssertion, ...] = ()
    node_index: int | None = None
    node_name: str = ""
    error: str = ""
    data: Mapping[str, Any] = {}


class CompiledChain:
    """A chain ready to run; `sensor_uuids` are those its filters name, `device_state_ids` those its actions assert."""

    __slots__ = ("_steps", "_stops", "chain", "device_state_ids", "sensor_uuids")

    def __init__(self, chain: RuleChain, nodes: tuple[NodeKind, ...]) -> None:
        self.chain = chain
        self.sensor_uuids = frozenset[str]().union(*(node.sensor_uuids for node in nodes))
        self.device_state_ids = frozenset[int]().union(*(node.device_state_ids for node in nodes))
        self._steps = tuple(node.apply for node in nodes)
        self._stops = tuple(RunResult("stopped", (), index, node.name) for index, node in enumerate(chain.nodes))

    def run(self, reading: Reading | None, scheduled_at_ms: int = 0) -> RunResult:
        """Judges `reading`, or None on a schedule, whose instant is then the event time. Never raises."""
        run = Run(self.chain.id, reading, scheduled_at_ms)
        index = 0
        try:
            for step in self._steps:
                if not step(run):
                    return self._stopped(index, run)
                index += 1
        except NodeFailed as error:
            return self._failed(index, str(error))
        except Exception as error:
            return self._failed(index, f"unexpected {type(error).__name__}")
        return RunResult("fired", tuple(run.effects), None, "", "", run.data)

    def _stopped(self, index: int, run: Run) -> RunResult:
        stop = self._stops[index]
        if run.effects or run.data:
            return stop._replace(effects=tuple(run.effects), data=run.data)
        return stop

    def _failed(self, index: int, error: str) -> RunResult:
        return RunResult("error", (), index, self.chain.nodes[index].name, error)


def compile_chain(chain: RuleChain, variable_types: VariableTypes | None = None) -> CompiledChain:
    """The chain ready to run. Raises InvalidChain with all mistakes together.

    Where `variable_types` does not know a filter's variables, its condition must make sense for some type.
    """
    if len(chain.nodes) > MAX_NODES:
        raise InvalidChain([("nodes", f"more than {MAX_NODES} nodes")])
    nodes: list[NodeKind] = []
    errors: Errors = []
    asserted: set[int] = set()
    for index, node in enumerate(chain.nodes):
        try:
            made = make_node(node, variable_types or {})
        except InvalidConfig as error:
            errors += [(f"nodes.{index}.{where}", what) for where, what in error.errors]
            continue
        # Two assertions of one state in one run carry the same watermark: the second could never take effect.
        if made.device_state_ids & asserted:
            errors.append((f"nodes.{index}.config.deviceStateId", "already set by an earlier node of this chain"))
        asserted |= made.device_state_ids
        nodes.append(made)
    if errors:
        raise InvalidChain(errors)
    return CompiledChain(chain, tuple(nodes))
