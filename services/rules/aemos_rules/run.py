"""One run of a chain: what its nodes share, and what they may ask. Pure: whoever starts it has fetched everything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, TypeVar

import msgspec

from .domain import NodeFailed, Question, Reading, RuleChain

T = TypeVar("T")
MAX_DEPTH = 5


class Loop(NodeFailed):
    """Chains lead to one another without end: no way of the chain goes on from here."""


class Start(NamedTuple):
    """How a run began. `node` is empty, or the one at which a deadline (`deadline_ms`) let it go on with `data`."""

    reading: Reading | None
    at_ms: int = 0
    node: str = ""
    deadline_ms: int = 0
    data: Mapping[str, Any] = {}
    depth: int = 0

    @property
    def trigger(self) -> str:
        """In a word."""
        if self.node:
            return "deadline"
        if self.depth:
            return "chain"
        return "schedule" if self.reading is None else "reading"

    @property
    def moment(self) -> int:
        """Event time, ms since 1970."""
        return self.at_ms or (self.reading.received_at_ms if self.reading else 0)


class Cell(NamedTuple):
    """Names what a node remembers: of one chain, by the node's name, for one key (a variable's id)."""

    partition: int
    chain_id: int
    node: str
    key: str


class Remembered(NamedTuple):
    """Effect: the cell has this value from now on."""

    cell: Cell
    value: bytes


class Deadline(NamedTuple):
    """Effect: the run goes on at the cell's node at `due_ms` (wall clock), unless another deadline takes its place.

    `due_ms` 0: there is none any more. `depth` counts the chains that led here. `put_off_ms`: not before then,
    after so many `tries`.
    """

    cell: Cell
    due_ms: int
    reading: Reading | None = None
    data: Mapping[str, Any] = {}
    at_ms: int = 0
    depth: int = 0
    put_off_ms: int = 0
    tries: int = 0

    @property
    def start(self) -> Start:
        """Of the run that goes on."""
        return Start(self.reading, self.at_ms, self.cell.node, self.due_ms, self.data, self.depth)


class Context:
    """What is known beyond the reading; the empty one knows nothing."""

    def word(self, word: str, reading: Reading | None) -> Any:
        """The value of `device`, `sensor`, `states` or `sensors` for a reading; a mapping."""
        return {}


NOTHING_KNOWN = Context()


@dataclass(slots=True)
class World:
    """What all runs of one job share: the clock, memory, and the context that chains asked for.

    `memory` holds the cells that exist, as the runs before left them; `answers` is what a scheduled chain asked about
    other sensors.
    """

    now_ms: int = 0
    partition: int = 0
    memory: dict[Cell, bytes] = field(default_factory=dict)
    context: Context = NOTHING_KNOWN
    answers: Mapping[Question, Mapping[str, Any]] = field(default_factory=dict)


NOWHERE = World()


class Run:
    """`reading` is None on a schedule. `at_ms` is the event time where it is not the reading's: of a schedule or a
    deadline. `deadline_ms` is not 0 while the node runs at which a deadline lets the run go on."""

    __slots__ = ("at_ms", "chain", "data", "deadline_ms", "depth", "effects", "reading", "world")

    def __init__(self, chain: RuleChain, reading: Reading | None, at_ms: int, world: World) -> None:
        self.chain, self.reading, self.at_ms, self.world = chain, reading, at_ms, world
        self.data: dict[str, Any] = {}
        self.effects: list[Any] = []
        self.deadline_ms = 0
        self.depth = 0 if reading is None else reading.depth

    @property
    def mark(self) -> tuple[int, int]:
        """Its place in event time: (ms since 1970, reading id)."""
        reading = self.reading
        return (self.at_ms or (reading.received_at_ms if reading else 0), reading.id if reading else 0)

    def number(self, field: str) -> float:
        """A value of the data, or the reading's when `field` is empty. NodeFailed when it is no finite number."""
        value: Any = self.data.get(field) if field else self.reading and self.reading.value
        if type(value) not in (float, int) or value - value != 0:
            raise NodeFailed(f"'{field or 'value'}' is no number")
        return float(value)

    def cell(self, node: str) -> Cell:
        """Where a node remembers something of the reading's variable."""
        key = "" if self.reading is None else str(self.reading.telemetry_data_id)
        return Cell(self.world.partition, self.chain.id, node, key)

    def recall(self, node: str, kind: type[T]) -> T | None:
        """What the node remembers; None at first, and when another kind of node had its name before."""
        value = self.world.memory.get(self.cell(node))
        try:
            return None if value is None else _decoder(kind).decode(value)  # type: ignore[arg-type]
        except msgspec.ValidationError:
            return None

    def remember(self, node: str, value: Any) -> None:
        """Keeps this instead, once the run has succeeded and its effects are stored."""
        self.effects.append(Remembered(self.cell(node), _ENCODER.encode(value)))

    def arm(self, node: str, wait_ms: int, key: str = "") -> int:
        """Lets the run go on at this node in `wait_ms`, as it is now. Returns when that is, in ms of the wall clock.

        One deadline for each variable, or for each `key`: a new one takes the old one's place.
        """
        due = self.world.now_ms + max(wait_ms, 0)
        cell = self.cell(node)._replace(key=key) if key else self.cell(node)
        try:
            _ENCODER.encode(self.data)
        except (OverflowError, TypeError, ValueError) as error:  # or it would fail all that is stored with it
            raise NodeFailed(f"the data so far cannot be kept: {error}") from error
        self.effects.append(Deadline(cell, due, self.reading, self.data, self.at_ms, self.depth))
        return due

    def disarm(self, node: str) -> None:
        """Takes the deadline back."""
        self.effects.append(Deadline(self.cell(node), 0))

    def deeper(self) -> int:
        """The depth of what this run leads to. Loop where chains lead to one another without end."""
        if self.depth >= MAX_DEPTH:
            raise Loop(f"a loop: {MAX_DEPTH} chains led to one another")
        return self.depth + 1

    def key(self, node: str) -> str:
        """Names one effect: of chain, version, node, reading and time. A repeated job makes the same."""
        at, reading_id = self.mark
        variable = 0 if self.reading is None else self.reading.telemetry_data_id
        return f"{self.chain.id}:{self.chain.version}:{node}:{variable}:{reading_id}:{at}"


_ENCODER = msgspec.msgpack.Encoder()


@cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)
