"""What a notification becomes in a message: Jinja2 in its sandbox, bounded in what it may do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

from aemos_core.errors import invalid
from jinja2 import StrictUndefined, Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.filters import do_round
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import htmlsafe_json_dumps

_MOST_OUTPUT = 64 * 1024
_MOST_SECONDS = 0.25
"""Of processor time: a template runs on the loop, where everybody waits for it."""

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
    ends_at = 0.0
    """In seconds of this thread's time."""

    def begin(self) -> None:
        """From now on there is time."""
        self.ends_at = time.thread_time() + _MOST_SECONDS

    def check_time(self) -> None:
        """SecurityError when what runs has run for too long."""
        if time.thread_time() > self.ends_at:
            raise SecurityError("it takes too long")

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
_LONGEST_SEPARATOR = 20
_MOST_DIGITS = 15
_EACH = "each of a loop"
"""A filter's name that no template can spell."""


def _join(values: Any, separator: str = "") -> str:
    """A text between the letters of a text, again and again, makes much out of little."""
    if isinstance(values, str) or len(separator) > _LONGEST_SEPARATOR:
        raise SecurityError(f"join takes a list and a separator of at most {_LONGEST_SEPARATOR} characters")
    return separator.join(map(str, values))


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    """The library computes 10 ** precision, however long that takes."""
    if abs(precision) > _MOST_DIGITS:
        raise SecurityError(f"round takes at most {_MOST_DIGITS} digits")
    return do_round(value, precision, method)


def _tojson(value: Any) -> str:
    """Without an indent, which could be a million spaces."""
    return htmlsafe_json_dumps(value, sort_keys=True)


def _bounded(made_by: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(made_by)
    def bounded(*arguments: Any, **named: Any) -> Any:
        _sandbox.check_time()
        made = made_by(*arguments, **named)
        if isinstance(made, str) and len(made) > _MOST_OUTPUT:
            raise SecurityError(f"a filter makes more than {_MOST_OUTPUT} characters")
        return made

    return bounded


class _Each(list[Any]):
    """What a loop goes through, while there is time; it still has a length."""

    def __iter__(self) -> Iterator[Any]:
        for each in super().__iter__():
            _sandbox.check_time()
            yield each


# Its optimizer tries what is nested within itself again at each level.
_sandbox = _Sandbox(undefined=StrictUndefined, autoescape=False, optimized=False)
_sandbox.globals.clear()
_sandbox.filters |= {"join": _join, "round": _round, "tojson": _tojson}
_sandbox.filters = {_EACH: _Each, **{name: _bounded(_sandbox.filters[name]) for name in _FILTERS}}


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
    try:
        json.loads(made)
    except (ValueError, RecursionError):
        raise invalid("bodyTemplate", "does not make JSON: use the tojson filter") from None
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
    _sandbox.begin()  # what is constant is computed as it is compiled
    try:
        yield
    except _MISTAKES as error:
        raise invalid(loc, f"{type(error).__name__}: {str(error)[:200]}") from None
    except _TOO_DEEP:
        raise invalid(loc, "is nested too deep") from None


def _parsed(template: str) -> Template:
    tree = _sandbox.parse(template)
    _check_tree(tree)
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = nodes.Filter(loop.iter, _EACH, [], [], None, None, lineno=loop.lineno, environment=_sandbox)
    return _sandbox.from_string(tree)


def _rendered(loc: str, template: str, notification: Mapping[str, Any]) -> str:
    values = {"type": "", "deviceUuid": "", "metadata": {}, "timestamp": "", "id": "", **notification}
    pieces: list[str] = []
    size = 0
    with _named(loc):
        pieces_of = _parsed(template).generate
        _sandbox.begin()
        for piece in pieces_of(values, notification=values):
            size += len(piece)
            if size > _MOST_OUTPUT:
                raise invalid(loc, f"makes more than {_MOST_OUTPUT} characters")
            pieces.append(piece)
        made = "".join(pieces)
        made.encode()  # an escaped half of a surrogate pair is no text
    return made


def _check_tree(tree: nodes.Template) -> None:
    for node in tree.find_all(nodes.Node):
        if not isinstance(node, _OFFERED):
            raise SecurityError(f"{type(node).__name__} is not offered")
    for call in tree.find_all(nodes.Call):
        if not (isinstance(call.node, nodes.Getattr) and call.node.attr in _METHODS):
            raise SecurityError("only get, items, keys and values may be called")
