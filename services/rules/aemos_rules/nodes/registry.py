"""The one registry of node kinds. A new kind is one class in its family's file; nothing else names it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, NamedTuple, TypeAlias, get_args

import msgspec
from msgspec import Meta

from ..domain import Node, Question, VariableType
from ..run import Run

Errors: TypeAlias = list[tuple[str, str]]
"""(where, what is wrong): ("nodes.0.config.condition", "column 9: ...")."""

VariableTypes: TypeAlias = Mapping[tuple[str, str], VariableType]
"""(sensor uuid, variable name) -> type, as far as known."""

MAX_TEXT = 255  # characters of a name, uuid or state value
MAX_ID = 2**53 - 1  # ids are JSON numbers
MAX_SECONDS = 366 * 86_400

# Types of configuration fields. The description says what the author must give, also when it is refused.
Text: TypeAlias = Annotated[
    str, Meta(min_length=1, max_length=MAX_TEXT, pattern=r"\S", description=f"a text of 1 to {MAX_TEXT} characters")
]
Cel: TypeAlias = Annotated[str, Meta(min_length=1, pattern=r"\S", description="an expression in CEL")]
Id: TypeAlias = Annotated[int, Meta(gt=0, le=MAX_ID, description="a whole number above 0")]
Number: TypeAlias = Annotated[float, Meta(ge=-1e300, le=1e300, description="a number")]
Seconds: TypeAlias = Annotated[
    float, Meta(ge=0.001, le=MAX_SECONDS, description=f"seconds, more than 0 and at most {MAX_SECONDS}")
]


class Configuration(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Configuration of a kind: a strict schema, spelled in JSON as in the contract."""


class InvalidConfig(Exception):
    """A node's configuration is refused; `errors` are located from the configuration down."""

    def __init__(self, errors: Errors) -> None:
        super().__init__(errors)
        self.errors = errors


class Place(NamedTuple):
    """Where a node stands: its name in the chain, and what is known of variables' types when it is checked."""

    name: str
    variable_types: VariableTypes


class NodeKind:
    """One step, compiled. A subclass refuses what its Config cannot express by raising InvalidConfig in `__init__`.

    `family` is the node's type, `kind` the word in its configuration, `outcomes` those that connections may name.
    """

    family: ClassVar[str] = ""
    kind: ClassVar[str] = ""
    outcomes: ClassVar[tuple[str, ...]] = ("success", "failure")
    Config: ClassVar[type[msgspec.Struct]] = Configuration

    sensor_uuids: frozenset[str] = frozenset()
    device_state_ids: frozenset[int] = frozenset()
    rule_chain_ids: frozenset[int] = frozenset()
    other_sensor_uuids: frozenset[str] = frozenset()
    """Sensors that it names without judging their readings."""
    needs: frozenset[str] = frozenset()
    """Words of the context that it asks for, such as "device"; empty for most."""
    questions: frozenset[Question] = frozenset()
    """What it asks about other sensors, on a schedule."""
    remembers: bool = False
    """Whether it has a memory cell for each variable that reaches it."""

    def __init__(self, config: Any, place: Place) -> None:
        self.name = place.name

    def __init_subclass__(cls, kind: str = "", **more: Any) -> None:
        super().__init_subclass__(**more)
        if kind:
            cls.kind = kind
            KINDS[cls.family, kind] = cls

    def apply(self, run: Run) -> bool | None:
        """Its outcome: true or false of a filter, success of the others; None: the run ends here without one.

        Raises NodeFailed, with a text for the chain's author, for the outcome failure.
        """
        raise NotImplementedError

    def values(self, run: Run) -> Mapping[str, Any]:
        """What decides, as it is before `apply`: for whoever asks why a run went as it did. Never on the hot path."""
        return {}


class Filter(NodeKind):
    """Goes one of two ways, or none when the reading is not its business."""

    family = "filter"
    outcomes = ("true", "false", "failure")


class Transform(NodeKind):
    """Adds to the run's data."""

    family = "transform"


class Action(NodeKind):
    """Says what follows."""

    family = "action"


KINDS: dict[tuple[str, str], type[NodeKind]] = {}
_CHOOSES: Mapping[str, tuple[str, str]] = {
    "filter": ("kind", "condition"),
    "transform": ("action", ""),
    "action": ("action", ""),
}
"""Family -> the configuration's key that names the kind, and the kind when it is absent."""


def make_node(node: Node, variable_types: VariableTypes) -> NodeKind:
    """The node ready to run. Raises InvalidConfig with all its mistakes, located within the node."""
    if node.type not in _CHOOSES:
        raise InvalidConfig([("type", f"must be one of {', '.join(sorted(_CHOOSES))}")])
    key, default = _CHOOSES[node.type]
    name = node.config.get(key, default)
    kind = KINDS.get((node.type, name)) if isinstance(name, str) else None
    if kind is None:
        kinds = sorted(kind for family, kind in KINDS if family == node.type)
        raise InvalidConfig([(f"config.{key}", f"must be one of {', '.join(kinds)}")])
    try:
        config = parse(kind.Config, {field: value for field, value in node.config.items() if field != key})
        return kind(config, Place(node.name, variable_types))
    except InvalidConfig as refused:
        raise InvalidConfig([(f"config.{where}", message) for where, message in refused.errors]) from None


def parse(config: type[msgspec.Struct], given: Mapping[str, Any]) -> msgspec.Struct:
    """The configuration; InvalidConfig with every field that is wrong, not only the first."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(config)}
    errors: Errors = [(name, "unknown") for name in given if name not in fields]
    values = {}
    for name, field in fields.items():
        if name in given:
            try:
                values[field.name] = msgspec.convert(_whole(given[name]), field.type)
            except msgspec.ValidationError as error:
                errors.append((name, _wanted(field.type) or str(error).replace("`", "'")))
        elif field.required:
            errors.append((name, "required"))
    if errors:
        raise InvalidConfig(errors)
    return config(**values)


def _whole(value: Any) -> Any:
    """google.protobuf.Struct knows doubles only, so 8 arrives as 8.0."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_ID + 1:
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return {key: _whole(item) for key, item in value.items()} if isinstance(value, dict) else value


def _wanted(kind: Any) -> str:
    metas = [meta for meta in get_args(kind) if isinstance(meta, Meta)]
    return f"must be {metas[0].description}" if metas else ""


class NodeType(NamedTuple):
    """A kind as a program that builds chains needs to know it; `config_schema` is JSON Schema."""

    type: str
    kind: str
    description: str
    outcomes: tuple[str, ...]
    config_schema: dict[str, Any]


def node_types() -> Iterator[NodeType]:
    """Every kind, by family and name."""
    for (family, name), kind in sorted(KINDS.items()):
        key, default = _CHOOSES[family]
        schema = _inlined(kind.Config)
        chooser = {"const": name, **({"default": default} if default else {})}
        schema["properties"] = {key: chooser, **schema["properties"]}
        schema["required"] = [*([] if name == default else [key]), *schema.get("required", [])]
        yield NodeType(family, name, " ".join((kind.__doc__ or "").split()), kind.outcomes, schema)


def _inlined(config: type[msgspec.Struct]) -> dict[str, Any]:
    (schema,), parts = msgspec.json.schema_components([config], ref_template="#/$defs/{name}")
    own = dict(parts.pop(schema["$ref"].rpartition("/")[2]))
    for name in ("title", "description"):
        own.pop(name, None)
    own["properties"] = {name: _without_empty_default(field) for name, field in own["properties"].items()}
    return own | ({"$defs": parts} if parts else {})


def _without_empty_default(field: dict[str, Any]) -> dict[str, Any]:
    """An optional field's emptiness is not a value that it takes."""
    return {key: value for key, value in field.items() if key != "default" or value}
