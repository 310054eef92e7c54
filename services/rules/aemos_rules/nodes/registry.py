"""The one registry of node kinds. A new kind is one class in its family's file; nothing else names it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, NamedTuple, TypeAlias, dataclass_transform, get_args

import msgspec
from msgspec import Meta

from ..conditions import FETCHED, ByType, InvalidCondition
from ..domain import VARIABLE_TYPES, Errors, InvalidChain, Node, Question, VariableType
from ..run import Run

VariableTypes: TypeAlias = Mapping[tuple[str, str], VariableType]
"""(sensor uuid, variable name) -> type, as far as known."""

MAX_TEXT = 255  # characters of a name, uuid or state value
MAX_VARIABLE_NAME = 200  # what ingest takes
MAX_ID = 2**53 - 1  # ids are JSON numbers
MAX_SECONDS = 366 * 86_400

# Types of configuration fields. The description says what the author must give, also when it is refused.
Text: TypeAlias = Annotated[
    str, Meta(min_length=1, max_length=MAX_TEXT, pattern=r"\S", description=f"a text of 1 to {MAX_TEXT} characters")
]
VariableName: TypeAlias = Annotated[
    str,
    Meta(
        max_length=MAX_VARIABLE_NAME,
        pattern=r"^\S([\s\S]*\S)?$",
        description=f"a name of 1 to {MAX_VARIABLE_NAME} characters without a space at its ends",
    ),
]
Cel: TypeAlias = Annotated[str, Meta(min_length=1, pattern=r"\S", description="an expression in CEL")]
Id: TypeAlias = Annotated[int, Meta(gt=0, le=MAX_ID, description="a whole number above 0")]
Number: TypeAlias = Annotated[float, Meta(ge=-1e300, le=1e300, description="a number")]
Seconds: TypeAlias = Annotated[
    float, Meta(ge=0.001, le=MAX_SECONDS, description=f"seconds, more than 0 and at most {MAX_SECONDS}")
]


KINDS: dict[tuple[str, str], type[NodeKind]] = {}


class _KindMeta(msgspec.StructMeta):
    """Makes fields keywords, and registers what has a `kind`."""

    def __new__(
        cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], kind: str = "", **options: Any
    ) -> _KindMeta:
        made: Any = super().__new__(cls, name, bases, namespace, kw_only=True, **options)
        if kind:
            made.kind = kind
            KINDS[made.family, kind] = made
        return made  # type: ignore[no-any-return]


@dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
class NodeKind(msgspec.Struct, metaclass=_KindMeta, dict=True, eq=False, forbid_unknown_fields=True, rename="camel"):
    """One step. Its fields are its configuration: a strict schema, spelled in JSON as in the contract.

    `family` is the node's type, `kind` the word in its configuration, `outcomes` those that connections may name.
    """

    family: ClassVar[str] = ""
    kind: ClassVar[str] = ""
    outcomes: ClassVar[tuple[str, ...]] = ("success", "failure")

    # What has no type here is no field: it is set when the node is compiled.
    name = ""
    """Its name in the chain."""
    sensor_uuids = frozenset[str]()
    device_state_ids = frozenset[int]()
    rule_chain_ids = frozenset[int]()
    other_sensor_uuids = frozenset[str]()
    """Sensors that it names without judging their readings."""
    needs = frozenset[str]()
    """Words of the context that it asks for, such as "device"; empty for most."""
    questions = frozenset[Question]()
    """What it asks about other sensors, on a schedule."""
    remembers = False
    """Whether it has a memory cell for each variable that reaches it."""

    def compile(self, types: VariableTypes) -> None:
        """Makes ready what `apply` needs. InvalidChain for what the types of its fields cannot express."""

    def expression(
        self, field: str, text: str, types: Iterable[VariableType] = VARIABLE_TYPES, is_condition: bool = True
    ) -> ByType:
        """The expression in one of its fields, whose readings have one of these types."""
        try:
            found = ByType(text, types, is_condition)
        except InvalidCondition as error:
            raise InvalidChain([(field, str(error))]) from None
        self.needs |= found.first.words & FETCHED
        self.other_sensor_uuids |= found.named_sensors
        return found

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


_CHOOSES: Mapping[str, tuple[str, str]] = {
    "filter": ("kind", "condition"),
    "transform": ("action", ""),
    "action": ("action", ""),
}
"""Family -> the configuration's key that names the kind, and the kind when it is absent."""


def make_node(node: Node, variable_types: VariableTypes) -> NodeKind:
    """The node ready to run. Raises InvalidChain with all its mistakes, located within the node."""
    if node.type not in _CHOOSES:
        raise InvalidChain([("type", f"must be one of {', '.join(sorted(_CHOOSES))}")])
    key, default = _CHOOSES[node.type]
    name = node.config.get(key, default)
    kind = KINDS.get((node.type, name)) if isinstance(name, str) else None
    if kind is None:
        kinds = sorted(kind for family, kind in KINDS if family == node.type)
        raise InvalidChain([(f"config.{key}", f"must be one of {', '.join(kinds)}")])
    try:
        made = parse(kind, {field: value for field, value in node.config.items() if field != key})
        made.name = node.name
        made.compile(variable_types)
        return made
    except InvalidChain as refused:
        raise InvalidChain([(f"config.{where}", message) for where, message in refused.errors]) from None


def parse(kind: type[NodeKind], given: Mapping[str, Any]) -> NodeKind:
    """The node of a configuration; InvalidChain with every field that is wrong, not only the first."""
    fields = _fields(kind)
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
        raise InvalidChain(errors)
    return kind(**values)


@cache
def _fields(kind: type[NodeKind]) -> Mapping[str, msgspec.structs.FieldInfo]:
    return {field.encode_name: field for field in msgspec.structs.fields(kind)}


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
        schema = _inlined(kind)
        chooser = {"const": name, **({"default": default} if default else {})}
        schema["properties"] = {key: chooser, **schema["properties"]}
        schema["required"] = [*([] if name == default else [key]), *schema.get("required", [])]
        yield NodeType(family, name, " ".join((kind.__doc__ or "").split()), kind.outcomes, schema)


def _inlined(kind: type[NodeKind]) -> dict[str, Any]:
    (schema,), parts = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    own = dict(parts.pop(schema["$ref"].rpartition("/")[2]))
    for name in ("title", "description"):
        own.pop(name, None)
    own["properties"] = {name: _without_empty_default(field) for name, field in own["properties"].items()}
    return own | ({"$defs": parts} if parts else {})


def _without_empty_default(field: dict[str, Any]) -> dict[str, Any]:
    """An optional field's emptiness is not a value that it takes."""
    return {key: value for key, value in field.items() if key != "default" or value}
