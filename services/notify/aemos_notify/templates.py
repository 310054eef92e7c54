"""What a notification becomes in a message: Jinja2 in its sandbox, bounded in what it may do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aemos_core.errors import invalid
from jinja2 import StrictUndefined, Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MOST_OUTPUT = 64 * 1024

EXAMPLE: Mapping[str, Any] = {
    "id": "1768905001234-0",
    "type": "alarm",
    "deviceUuid": "abc-123",
    "metadata": {
        "alarmId": 7,
        "alarmType": "freezer-too-warm",
        "change": "raised",
        "severity": "critical",
        "active": True,
        "acknowledged": False,
        "message": "above -15 °C for 10 minutes",
    },
    "timestamp": "2026-01-20T10:30:01.234Z",
}
"""What a preview is made of when no notification is named."""
_EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "alarm": EXAMPLE["metadata"],
    "device-state-change": {"stateName": "temperatureAlert", "newValue": "warning", "oldValue": "normal"},
    "device-connectivity": {"online": True, "reason": "connected", "lastSeenAt": "2026-01-20T10:30:01.200Z"},
    "rule-run": {"change": "suspended", "ruleChainId": 42, "name": "ping", "error": "node 'hot': no such key: limit"},
}

_SUBJECT = (
    "{% if type == 'alarm' %}[{{ metadata.severity }}] {{ metadata.alarmType }} {{ metadata.change }}"
    "{% elif type == 'device-state-change' %}{{ metadata.stateName }}: {{ metadata.newValue }}"
    "{% else %}{{ type }}{% endif %}{% if deviceUuid %} ({{ deviceUuid }}){% endif %}"
)
_TEXT = (
    "{{ type }} at {{ timestamp }}{% if deviceUuid %}\ndevice: {{ deviceUuid }}{% endif %}"
    "{% for key, value in metadata.items() %}\n{{ key }}: {{ value }}{% endfor %}\n"
)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Beside what the sandbox forbids: nothing that makes much out of little."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or any(isinstance(side, (str, list, tuple)) for side in (left, right)):
            raise SecurityError(f"{operator} is not offered here")
        if any(isinstance(side, int) and abs(side) > 10**12 for side in (left, right)):
            raise SecurityError("the number is too large")
        return super().call_binop(context, operator, left, right)


_FILTERS = frozenset(
    (
        *("abs", "capitalize", "d", "default", "e", "escape", "first", "float", "int", "join", "last", "length"),
        *("lower", "round", "string", "title", "tojson", "trim", "truncate", "upper"),
    )
)
_METHODS = frozenset(("get", "items", "keys", "values"))
_OFFERED: tuple[type[nodes.Node], ...] = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.CondExpr, nodes.For),
    *(nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Call, nodes.Filter, nodes.Test),
    *(nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Concat, nodes.Keyword),
    *(nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow, nodes.Neg, nodes.Pos),
    *(nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair),
)
"""Nothing that gives a text a name: it could be doubled forty times."""
_MOST_LOOPS = 10
_LONGEST_SEPARATOR = 20


def _join(values: Any, separator: str = "") -> str:
    """A text between the letters of a text, again and again, makes much out of little."""
    if isinstance(values, str) or len(separator) > _LONGEST_SEPARATOR:
        raise SecurityError(f"join takes a list and a separator of at most {_LONGEST_SEPARATOR} characters")
    return separator.join(map(str, values))


_sandbox = _Sandbox(undefined=StrictUndefined, autoescape=False)
_sandbox.globals.clear()
_sandbox.filters["join"] = _join


@dataclass(frozen=True, slots=True)
class Message:
    """A subject, for e-mail, and a body: plain text, or a webhook's JSON."""

    subject: str
    body: str


def examples(event_types: Sequence[str]) -> list[Mapping[str, Any]]:
    """One of each of these types that AEMOS itself announces; an alarm when no type is named."""
    wanted = event_types or ("alarm",)
    return [{**EXAMPLE, "type": kind, "metadata": _EXAMPLES[kind]} for kind in wanted if kind in _EXAMPLES]


def text(subject: str, body: str, notification: Mapping[str, Any]) -> Message:
    """A subject of one line and a text; INVALID names the template at fault."""
    made = _rendered("bodyTemplate", body or _TEXT, notification)
    return Message(" ".join(_rendered("subjectTemplate", subject or _SUBJECT, notification).split()), made)


def json_body(body: str, notification: Mapping[str, Any]) -> Message:
    """JSON: the notification itself, or what the template makes of it; INVALID when that is none."""
    if not body:
        return Message("", json.dumps(notification, ensure_ascii=False))
    made = _rendered("bodyTemplate", body, notification)
    _check_json(made)
    return Message("", made)


def check(subject: str, body: str) -> None:
    """INVALID names the template that could not be rendered, whatever the notification holds."""
    for loc, template in (("subjectTemplate", subject), ("bodyTemplate", body)):
        with _named(loc):
            _parsed(template)


_MISTAKES = (TemplateError, ArithmeticError, TypeError, ValueError, AttributeError, LookupError)
_TOO_DEEP = (RecursionError, SyntaxError, MemoryError)
"""What Python's compiler says of hundreds of brackets or conditions within each other."""


@contextmanager
def _named(loc: str) -> Iterator[None]:
    try:
        yield
    except _MISTAKES as error:
        raise invalid(loc, f"{type(error).__name__}: {str(error)[:200]}") from None
    except _TOO_DEEP:
        raise invalid(loc, "is nested too deep") from None


def _parsed(template: str) -> Template:
    _check_tree(_sandbox.parse(template))
    return _sandbox.from_string(template)


def _rendered(loc: str, template: str, notification: Mapping[str, Any]) -> str:
    values = {"type": "", "deviceUuid": "", "metadata": {}, "timestamp": "", "id": "", **notification}
    pieces: list[str] = []
    size = 0
    with _named(loc):
        for piece in _parsed(template).generate(values, notification=values):
            size += len(piece)
            if size > _MOST_OUTPUT:
                raise invalid(loc, f"makes more than {_MOST_OUTPUT} characters")
            pieces.append(piece)
    return "".join(pieces)


def _check_tree(tree: nodes.Template) -> None:
    """What is left ends soon and makes little: one loop at a time, over what the notification holds."""
    for node in tree.find_all(nodes.Node):
        if not isinstance(node, _OFFERED):
            raise SecurityError(f"{type(node).__name__} is not offered")
    loops = list(tree.find_all(nodes.For))
    if len(loops) > _MOST_LOOPS or any(True for loop in loops for _ in loop.find_all(nodes.For)):
        raise SecurityError(f"more than {_MOST_LOOPS} loops, or one within another, are not offered")
    for found in tree.find_all(nodes.Filter):
        _check_filter(found)
    for call in tree.find_all(nodes.Call):
        if not (isinstance(call.node, nodes.Getattr) and call.node.attr in _METHODS):
            raise SecurityError("only get, items, keys and values may be called")


def _check_filter(found: nodes.Filter) -> None:
    if found.name not in _FILTERS:
        raise SecurityError(f"the filter {found.name!r} is not offered")
    inner = found.find_all(nodes.Filter)
    if found.name == "tojson" and (found.args or found.kwargs or any(f.name == "tojson" for f in inner)):
        raise SecurityError("tojson takes no indent, and nothing that was made by it: quotes would double")


def _check_json(text: str) -> None:
    try:
        json.loads(text)
    except ValueError:
        raise invalid("bodyTemplate", "does not make JSON: use the tojson filter") from None
