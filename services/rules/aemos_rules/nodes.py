"""What a node can be. A new kind is one class and one line in NODE_KINDS."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any, ClassVar, TypeAlias

from .conditions import Condition, InvalidCondition, compile_condition
from .domain import VARIABLE_TYPES, Node, NodeFailed, Reading, StateAssertion, VariableType

Errors: TypeAlias = list[tuple[str, str]]
"""(where, what is wrong): ("nodes.0.config.condition", "column 9: ...")."""

VariableTypes: TypeAlias = Mapping[tuple[str, str], VariableType]
"""(sensor uuid, variable name) -> type, as far as known."""

MAX_TEXT = 255  # characters of a name, uuid or state value
MAX_ID = 2**53 - 1  # ids are JSON numbers


class InvalidConfig(Exception):
    """A node's configuration is refused; `errors` are located from the configuration down."""

    def __init__(self, errors: Errors) -> None:
        super().__init__(errors)
        self.errors = errors


class Run:
    """What the nodes of one run share: `reading` (None: scheduled), transformed `data`, and the effects so far."""

    __slots__ = ("chain_id", "data", "effects", "reading", "scheduled_at_ms")

    def __init__(self, chain_id: int, reading: Reading | None, scheduled_at_ms: int) -> None:
        self.chain_id, self.reading, self.scheduled_at_ms = chain_id, reading, scheduled_at_ms
        self.data: dict[str, Any] = {}
        self.effects: list[StateAssertion] = []


class NodeKind:
    """One step, compiled. A subclass refuses what FIELDS cannot express by raising InvalidConfig in `__init__`."""

    FIELDS: ClassVar[Mapping[str, type]] = {}
    OPTIONAL: ClassVar[frozenset[str]] = frozenset()
    sensor_uuids: frozenset[str] = frozenset()
    device_state_ids: frozenset[int] = frozenset()

    def __init__(self, config: Mapping[str, Any], variable_types: VariableTypes) -> None:
        """`config` has the FIELDS, and nothing else but the action."""

    def apply(self, run: Run) -> bool:
        """Whether the chain goes on. Raises NodeFailed with a text for the chain's author."""
        raise NotImplementedError


class SensorFilter(NodeKind):
    """Passes readings of one sensor, and of one of its variables if named, that satisfy the condition."""

    FIELDS: ClassVar[Mapping[str, type]] = {"sensorUUID": str, "condition": str, "variableName": str}
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"variableName"})

    def __init__(self, config: Mapping[str, Any], variable_types: VariableTypes) -> None:
        self._sensor_uuid: str = config["sensorUUID"]
        self._variable: str | None = config.get("variableName")
        self._expression: str = config["condition"]
        self._conditions: dict[VariableType, Condition | None] = {}
        self.sensor_uuids = frozenset({self._sensor_uuid})
        known = {
            kind
            for (sensor, variable), kind in variable_types.items()
            if sensor == self._sensor_uuid and self._variable in (None, variable)
        }
        self._check([kind for kind in VARIABLE_TYPES if kind in known] or VARIABLE_TYPES)

    def _check(self, candidates: Iterable[VariableType]) -> None:
        refusals: list[InvalidCondition] = []
        for kind in candidates:
            try:
                self._conditions[kind] = compile_condition(self._expression, kind)
                return
            except InvalidCondition as error:
                refusals.append(error)
        # The type under which the text was understood furthest is the likeliest meant.
        raise InvalidConfig([("condition", str(max(refusals, key=lambda error: (error.line, error.column))))])

    def apply(self, run: Run) -> bool:
        reading = run.reading
        if reading is None or reading.sensor_uuid != self._sensor_uuid:
            return False
        if self._variable is not None and reading.variable_name != self._variable:
            return False
        try:
            condition = self._conditions[reading.variable_type]
        except KeyError:
            condition = self._conditions[reading.variable_type] = self._compiled(reading.variable_type)
        return condition is not None and condition.holds(reading.value, reading)

    def _compiled(self, kind: VariableType) -> Condition | None:
        try:
            return compile_condition(self._expression, kind)
        except InvalidCondition:
            return None


class ConvertToFahrenheit(NodeKind):
    """Adds valueCelsius and valueFahrenheit of a reading in degrees Celsius to the run's data."""

    def apply(self, run: Run) -> bool:
        if run.reading is None:
            return False
        celsius = run.reading.value
        if type(celsius) not in (float, int) or not isfinite(fahrenheit := celsius * 9 / 5 + 32):
            raise NodeFailed("only a number can be converted to Fahrenheit")
        # A millionth of a degree is finer than any sensor and coarser than binary noise (37.7 is 99.86000000000001);
        # adding 0.0 makes -0.0 zero.
        run.data = {"valueCelsius": celsius, "valueFahrenheit": round(fahrenheit, 6) + 0.0}
        return True


class SendNotification(NodeKind):
    """Asserts a device state; whoever watches the device is told if that changes it."""

    FIELDS: ClassVar[Mapping[str, type]] = {"deviceStateId": int, "newStateValue": str}

    def __init__(self, config: Mapping[str, Any], variable_types: VariableTypes) -> None:
        self._device_state_id = int(config["deviceStateId"])
        self._value: str = config["newStateValue"]
        self.device_state_ids = frozenset({self._device_state_id})

    def apply(self, run: Run) -> bool:
        run.effects.append(
            StateAssertion(self._device_state_id, self._value, run.chain_id, run.reading, run.scheduled_at_ms)
        )
        return True


NODE_KINDS: Mapping[tuple[str, str], type[NodeKind]] = {
    ("filter", ""): SensorFilter,
    ("transform", "convertToFahrenheit"): ConvertToFahrenheit,
    ("action", "sendNotification"): SendNotification,
}


def make_node(node: Node, variable_types: VariableTypes) -> NodeKind:
    """The node ready to run. Raises InvalidConfig with all its mistakes, located within the node."""
    actions = [action for kind, action in NODE_KINDS if kind == node.type]
    if not actions:
        raise InvalidConfig([("type", f"must be one of {', '.join(sorted({kind for kind, _ in NODE_KINDS}))}")])
    action = "" if "" in actions else node.config.get("action")
    if action not in actions:
        raise InvalidConfig([("config.action", f"must be one of {', '.join(actions)}")])
    kind = NODE_KINDS[node.type, str(action)]
    allowed = {*kind.FIELDS, "action"} if action else kind.FIELDS
    errors = [(key, "unknown") for key in node.config if key not in allowed]
    errors += [error for key in kind.FIELDS for error in _mistakes(node.config, key, kind)]
    try:
        if not errors:
            return kind(node.config, variable_types)
    except InvalidConfig as refused:
        errors = refused.errors
    raise InvalidConfig([(f"config.{key}", message) for key, message in errors])


def _mistakes(config: Mapping[str, Any], key: str, kind: type[NodeKind]) -> Errors:
    if key not in config:
        return [] if key in kind.OPTIONAL else [(key, "required")]
    value = config[key]
    if kind.FIELDS[key] is int:
        return [] if _is_id(value) else [(key, "must be a whole number above 0")]
    if not isinstance(value, str) or not value.strip():
        return [(key, "must be a text that is not empty")]
    if len(value) > MAX_TEXT and key != "condition":
        return [(key, f"longer than {MAX_TEXT} characters")]
    return []


def _is_id(value: Any) -> bool:
    # google.protobuf.Struct knows doubles only, so 8 arrives as 8.0.
    whole = type(value) is int or (type(value) is float and value.is_integer())
    return whole and 0 < value <= MAX_ID
