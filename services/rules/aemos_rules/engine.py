"""Chains, compiled once and run on every reading: pure functions of (chain, reading, memory, context).

A compiled chain is a flat table of steps in an order in which every node comes after all that lead to it. A run keeps
the set of nodes that are to run as bits of one number, so each node runs once at the most, and joins cost nothing.
"""

from __future__ import annotations

import reprlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from sys import intern
from typing import Any, Literal, NamedTuple, TypeAlias

from .domain import Errors, InvalidChain, NodeFailed, Question, Reading, RuleChain
from .graph import Graph, graph_of, name_mistakes
from .nodes import NodeKind, make_node
from .nodes.registry import VariableTypes
from .run import NOWHERE, Loop, Run, Start, World

MAX_NODES = 100
KEPT_IDLE = 20
ERRORS_TO_SUSPEND = 20
"""In a row."""

Apply: TypeAlias = Callable[[Run], bool | None]
Step: TypeAlias = tuple[int, Apply, int, int, int]
"""(its own bit, what it does, bits of the nodes that run after true or success, after false, after failure).

The bit above all nodes stands for a good end of the chain; no bit at all after an outcome is a stop.
"""


class RunResult(NamedTuple):
    """How a run ended, where (`node_index` from 0, None when fired), and what follows from it.

    It fired when it came to an end of the chain; it stopped when no node came next before that. A stopped run keeps
    the effects of the actions before the stop; one that failed has none, and remembers nothing. A loop is a failure
    too: only what fails has an `error`.
    """

    outcome: Literal["fired", "stopped", "error", "loop"]
    effects: tuple[Any, ...] = ()
    node_index: int | None = None
    node_name: str = ""
    error: str = ""
    data: Mapping[str, Any] = {}


IDLE_RUN = ("reading", "device", "sensor", "at", "value", "outcome", "node")
"""What is kept of a run that changed nothing. A plain tuple of small things: the garbage collector does not follow
those, and a worker keeps twenty for each of 10,000 chains, whose readings may have 64 KiB."""
_SHOWN = 100


class Activity:
    """What the runs of one chain amount to since it was last written; `failing`, of `version`, since it last succeeded,
    are readings: a job that is tried again fails no more than once."""

    def __init__(self) -> None:
        self.fired = self.stopped = self.failed = self.not_recorded = 0
        self.second = self.second_count = self.version = 0
        self.failing: set[int] = set()
        self.idle: deque[tuple[Any, ...]] = deque(maxlen=KEPT_IDLE)

    def note(self, reading: Reading | None, result: RunResult) -> None:
        """A run that failed, or changed nothing as far as is known yet."""
        if result.error:
            failing = reading.id if reading else -1 - len(self.failing)
            if failing not in self.failing:
                self.failed += 1
                if len(self.failing) < ERRORS_TO_SUSPEND:
                    self.failing.add(failing)
            return
        if self.failing:
            self.failing.clear()
        self.idle.append(_idle_run(reading, result))
        if result.outcome == "fired":
            self.fired += 1
        else:
            self.stopped += 1

    @property
    def is_fresh(self) -> bool:
        """Something happened since it was last written."""
        return bool(self.fired or self.stopped or self.failed)


def _idle_run(reading: Reading | None, result: RunResult) -> tuple[Any, ...]:
    if reading is None:
        return 0, "", "", 0, "", result.outcome, result.node_name
    value = reading.value
    if type(value) is not float:
        value = (value if isinstance(value, str) else reprlib.repr(value))[:_SHOWN]
    # One copy of each name, not one for each run: they would be half of what is kept.
    device, sensor = intern(reading.device_uuid), intern(reading.sensor_uuid)
    return reading.id, device, sensor, reading.received_at_ms, value, result.outcome, result.node_name


class CompiledChain:
    """A chain ready to run.

    `sensor_uuids` are those its filters name, `other_sensor_uuids` those it names besides, `device_state_ids` and
    `rule_chain_ids` what its actions name; `needs` are words of the context that it asks for, `questions` what it asks
    about other sensors on a schedule, `remembering` the names of nodes with memory, `first` of those that see every
    reading of their variable. `plain` chains need and remember nothing.
    """

    def __init__(self, chain: RuleChain, nodes: Sequence[NodeKind], graph: Graph) -> None:
        self.chain = chain
        self.nodes = nodes
        self.activity = Activity()
        """What its runs amount to; whoever counts for longer than this object lives puts an own one here."""
        self.sensor_uuids = frozenset[str]().union(*(node.sensor_uuids for node in nodes))
        self.device_state_ids = frozenset[int]().union(*(node.device_state_ids for node in nodes))
        self.rule_chain_ids = frozenset[int]().union(*(node.rule_chain_ids for node in nodes))
        self.other_sensor_uuids = frozenset[str]().union(*(node.other_sensor_uuids for node in nodes))
        self.needs = frozenset[str]().union(*(node.needs for node in nodes))
        self.questions = frozenset[Question]().union(*(node.questions for node in nodes))
        self.remembering = tuple(node.name for node in nodes if node.remembers)
        self.first = frozenset(nodes[index].name for index in graph.entries)
        self.plain = not self.needs and not self.remembering
        self.order = graph.order
        self._places = {index: place for place, index in enumerate(graph.order)}
        self._end = 1 << len(nodes)
        self._entries = self._mask(graph.entries)
        self._stops = tuple(RunResult("stopped", (), index, nodes[index].name) for index in graph.order)
        self.table: tuple[Step, ...] = tuple(self._step(index, graph.targets[index]) for index in graph.order)

    def run(self, reading: Reading | None, at_ms: int = 0, world: World = NOWHERE) -> RunResult:
        """Judges `reading`, or None on a schedule, whose instant `at_ms` is then the event time. Never raises."""
        return self.go(Run(self.chain, reading, at_ms, world), self._entries, self.table)

    def resume(self, start: Start, world: World, table: Sequence[Step] = ()) -> RunResult:
        """Runs from the beginning, or goes on at the node whose deadline has come. Never raises. See `go`."""
        run = Run(self.chain, start.reading, start.at_ms, world)
        run.data, run.depth = dict(start.data), start.depth
        if not start.node:
            return self.go(run, self._entries, table or self.table)
        for index, kind in enumerate(self.nodes):
            if kind.name == start.node:
                run.deadline_ms = start.deadline_ms
                return self.go(run, 1 << self._places[index], table or self.table)
        return RunResult("stopped", (), None, start.node)

    def go(self, run: Run, todo: int, table: Sequence[Step]) -> RunResult:
        """Runs the nodes whose bits are in `todo`, and those that they lead to. Never raises.

        `table` is the chain's own, or one with the same rows whose steps also note what they see.
        """
        place = 0
        for place, (bit, apply, then, otherwise, failed) in enumerate(table):
            if not todo & bit:
                continue
            try:
                outcome = apply(run)
            except Exception as error:
                if not failed or not isinstance(error, NodeFailed) or isinstance(error, Loop):
                    return self._failed(place, error)
                run.data = {**run.data, "error": str(error)}
                todo |= failed
                continue
            run.deadline_ms = 0
            if outcome:
                todo |= then
            elif outcome is False:
                todo |= otherwise
            if todo < bit + bit:
                return self._stopped(place, run)
        return RunResult("fired", tuple(run.effects), None, "", "", run.data)

    def _stopped(self, place: int, run: Run) -> RunResult:
        stop = self._stops[place]
        if run.effects or run.data:
            return stop._replace(effects=tuple(run.effects), data=run.data)
        return stop

    def _failed(self, place: int, error: Exception) -> RunResult:
        said = str(error) if isinstance(error, NodeFailed) else f"unexpected {type(error).__name__}"
        return self._stops[place]._replace(outcome="loop" if isinstance(error, Loop) else "error", error=said)

    def _step(self, index: int, targets: Mapping[str, frozenset[int]]) -> Step:
        node = self.nodes[index]
        good, *others = node.outcomes
        masks = {outcome: self._mask(found) for outcome, found in targets.items()}
        decides = "false" in others and masks.get("false")
        then = masks.get(good) or (0 if decides else self._end)
        return (1 << self._places[index], node.apply, then, masks.get("false", 0), masks.get("failure", 0))

    def _mask(self, indexes: Iterable[int]) -> int:
        return sum(1 << self._places[index] for index in indexes)


def compile_chain(chain: RuleChain, variable_types: VariableTypes | None = None) -> CompiledChain:
    """The chain ready to run. Raises InvalidChain with all mistakes together.

    Where `variable_types` does not know a filter's variables, its condition must make sense for some type.
    """
    if len(chain.nodes) > MAX_NODES:
        raise InvalidChain([("nodes", f"more than {MAX_NODES} nodes")])
    made: dict[int, NodeKind] = {}
    errors: Errors = []
    for index, node in enumerate(chain.nodes):
        try:
            made[index] = make_node(node, variable_types or {})
        except InvalidChain as error:
            errors += [(f"nodes.{index}.{where}", what) for where, what in error.errors]
    nodes = list(made.values())
    if not chain.connections:
        errors += _asserted_twice(made)
        if not errors and any(node.remembers for node in nodes):
            errors += name_mistakes(chain.nodes)
    if errors:
        raise InvalidChain(errors)
    return CompiledChain(chain, nodes, graph_of(chain, [node.outcomes for node in nodes]))


def _asserted_twice(nodes: Mapping[int, NodeKind]) -> Errors:
    """Two assertions of one state in one run carry the same watermark: the second could never take effect."""
    errors: Errors = []
    asserted: set[int] = set()
    for index, node in nodes.items():
        if node.device_state_ids & asserted:
            errors.append((f"nodes.{index}.config.deviceStateId", "already set by an earlier node of this chain"))
        asserted |= node.device_state_ids
    return errors
