"""What the judge knows: chains, readings, and device states that move only forward in event time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from aemos_core.timing import Timing

VariableType: TypeAlias = Literal["number", "text", "boolean", "json"]
VARIABLE_TYPES: tuple[VariableType, ...] = ("number", "text", "boolean", "json")

Watermark: TypeAlias = tuple[int, int, int]
"""(event time in ms since 1970, reading id, chain id), compared in that order."""

NEVER: Watermark = (0, 0, 0)
"""The watermark of a state nothing has asserted yet."""

Cause: TypeAlias = tuple[int, int, int]
"""A run that changed something: (chain id, reading id or 0, event time in ms)."""
RunIds: TypeAlias = Mapping[Cause, int]
"""Of the runs that are recorded."""


Errors: TypeAlias = list[tuple[str, str]]
"""(where, what is wrong): ("nodes.0.config.condition", "column 9: ...")."""


class InvalidChain(Exception):
    """A chain, or a part of it, is refused: `errors` has every mistake, located from there."""

    def __init__(self, errors: Errors) -> None:
        super().__init__("; ".join(f"{where}: {what}" for where, what in errors))
        self.errors = errors


class NodeFailed(Exception):
    """A node could not do its work on this reading; the text is for the chain's author."""


@dataclass(frozen=True, slots=True)
class Node:
    """One step of a chain as its author wrote it: `config` is spelled as in the contract (`sensorUUID`)."""

    type: str
    name: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Connection:
    """After the node named `origin` ended with `outcome` (true, false, success, failure), the node `target` runs."""

    origin: str
    outcome: str
    target: str


@dataclass(frozen=True, slots=True)
class RuleChain:
    """Nodes run in their order, or by `connections` if there are any. The schedule's fields are the contract's;
    `schedule_since_ms`: when it became this."""

    id: int
    organization_id: int
    name: str = ""
    enabled: bool = True
    version: int = 1
    nodes: tuple[Node, ...] = ()
    schedule_enabled: bool = False
    cron_expression: str = ""
    timezone: str = "UTC"
    interval_seconds: int = 0
    interval_anchor_ms: int = 0
    run_at_ms: int = 0
    misfire_policy: str = "run-once"
    overlap_policy: str = "allow"
    schedule_paused: bool = False
    schedule_since_ms: int = 0
    connections: tuple[Connection, ...] = ()

    @property
    def timing(self) -> Timing:
        """When it runs by itself."""
        anchor, run_at = self.interval_anchor_ms, self.run_at_ms
        return Timing(self.cron_expression, self.timezone, self.interval_seconds, anchor, run_at)

    @property
    def schedule(self) -> tuple[object, ...]:
        """All that decides when and how it runs by itself, to compare."""
        policies = (self.misfire_policy, self.overlap_policy, self.schedule_paused)
        return (self.enabled, self.schedule_enabled, self.timing, policies)


# Named tuples where thousands are made each second: a frozen dataclass takes four times as long to construct.
class Reading(NamedTuple):
    """The reading judged. `value` has the Python type of `variable_type`: float, str, bool, or parsed JSON. `depth`
    counts the chains that led to it."""

    id: int
    organization_id: int
    device_id: int
    device_uuid: str
    sensor_id: int
    sensor_uuid: str
    telemetry_data_id: int
    variable_name: str
    variable_type: VariableType
    value: Any
    received_at_ms: int
    trace_context: bytes
    depth: int = 0


class Assertion(Protocol):
    """A run says that something has this value, from a place in event time on."""

    @property
    def value(self) -> str:
        """Of a state, or the severity of an alarm."""

    @property
    def watermark(self) -> Watermark:
        """Its place in event time."""


A = TypeVar("A", bound=Assertion)


class StateAssertion(NamedTuple):
    """A run says: this state has this value. `at_ms` is the event time of a schedule or deadline."""

    device_state_id: int
    value: str
    chain_id: int
    reading: Reading | None
    at_ms: int = 0

    @property
    def key(self) -> int:
        """The state it is about."""
        return self.device_state_id

    @property
    def watermark(self) -> Watermark:
        """Its place in event time. ValueError for a scheduled run without its instant: it would be ignored for ever."""
        reading = self.reading
        if reading is not None:
            return (self.at_ms or reading.received_at_ms, reading.id, self.chain_id)
        if self.at_ms <= 0:
            raise ValueError("an assertion needs a reading or the instant of its schedule")
        return (self.at_ms, 0, self.chain_id)


class Notice(NamedTuple):
    """A run tells those who watch the device of its reading; `key` names it, so that they hear it once."""

    key: str
    message: str
    reading: Reading
    at_ms: int


class DerivedReading(NamedTuple):
    """A run says: this reading was derived. `value` is JSON; `depth` counts the chains that led to it."""

    key: str
    organization_id: int
    sensor_uuid: str
    variable_name: str
    value: str
    at_ms: int
    depth: int
    reading: Reading | None


class Selection(NamedTuple):
    """Variables of these sensors, of those of these devices, and of those of devices with a label ("key=value").

    Nothing named means all of the organization; no variable names, all variables.
    """

    sensor_uuids: tuple[str, ...] = ()
    device_uuids: tuple[str, ...] = ()
    label: str = ""
    variable_names: tuple[str, ...] = ()


class Question(NamedTuple):
    """What was measured in a period, one of PERIODS before the run's instant, or last when it is empty."""

    about: Selection
    period: str


class ReportWanted(NamedTuple):
    """A run asks for a report: `key` names it once and for all, `period` is one of PERIODS before `at_ms`."""

    key: str
    organization_id: int
    rule_chain_id: int
    timezone: str
    at_ms: int
    title: str
    period: str
    about: Selection = Selection()
    email_to: tuple[str, ...] = ()


class StateRow(NamedTuple):
    """A device state's current value and the assertion it stands at."""

    device_state_id: int
    value: str
    watermark: Watermark = NEVER


def fold(value: str, watermark: Watermark, assertions: Iterable[A]) -> tuple[str, Watermark, list[tuple[str, A]]]:
    """The value, its watermark, and the changes (old value, assertion) after `assertions`, all of one state or alarm,
    in the order they came.

    One at or before the watermark is ignored, so a repeated job repeats no effect and a late reading never moves a
    state back; an equal value advances the watermark only.
    """
    changes: list[tuple[str, A]] = []
    for assertion in assertions:
        mark = assertion.watermark
        if mark <= watermark:
            continue
        if assertion.value != value:
            changes.append((value, assertion))
        value, watermark = assertion.value, mark
    return value, watermark, changes
