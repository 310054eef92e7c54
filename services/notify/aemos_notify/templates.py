"""What a notification becomes in a message: Jinja2 in its sandbox, bounded in what it may do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aemos_core.errors import invalid
from jinja2 import StrictUndefined, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from aemos_notify.subscriptions import Channel

_MOST_OUTPUT = 64 * 1024

EXAMPLE: Mapping[str, Any] = {
    "id": "1768905001234-0",
    "type": "alarm",
    "deviceUuid": "abc-123",
    "metadata": {
        "alarmType": "freezer-too-warm",
        "change": "raised",
        "severity": "critical",
        "active": True,
        "message": "above -15 °C for 10 minutes",
    },
    "timestamp": "2026-01-20T10:30:01.234Z",
}
"""What a preview is made of when no notification is named."""

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
_FORBIDDEN: tuple[type[nodes.Node], ...] = (
    nodes.Assign,  # doubling a text forty times
    nodes.AssignBlock,
    nodes.CallBlock,
    nodes.FilterBlock,
    nodes.FromImport,
    nodes.Import,
    nodes.Include,
    nodes.Macro,
)
_sandbox = _Sandbox(undefined=StrictUndefined, autoescape=False)
_sandbox.globals.clear()


@dataclass(frozen=True, slots=True)
class Message:
    """A subject, for e-mail, and a body: plain text, or a webhook's JSON."""

    subject: str
    body: str


def render(channel: str, subject: str, body: str, notification: Mapping[str, Any]) -> Message:
    """The message of a notification; INVALID names the template at fault."""
    webhook = channel == Channel.WEBHOOK
    text = json.dumps(notification, ensure_ascii=False) if webhook and not body else ""
    made = text or _rendered("bodyTemplate", body or _TEXT, notification)
    if webhook:
        _check_json(made)
        return Message("", made)
    return Message(" ".join(_rendered("subjectTemplate", subject or _SUBJECT, notification).split()), made)


def _rendered(loc: str, template: str, notification: Mapping[str, Any]) -> str:
    values = {"type": "", "deviceUuid": "", "metadata": {}, "timestamp": "", "id": "", **notification}
    try:
        _check_tree(_sandbox.parse(template))
        pieces: list[str] = []
        size = 0
        for piece in _sandbox.from_string(template).generate(values, notification=values):
            size += len(piece)
            if size > _MOST_OUTPUT:
                raise invalid(loc, f"makes more than {_MOST_OUTPUT} characters")
            pieces.append(piece)
        return "".join(pieces)
    except (TemplateError, ArithmeticError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise invalid(loc, f"{type(error).__name__}: {str(error)[:200]}") from None


def _check_tree(tree: nodes.Template) -> None:
    """What is left ends soon and makes little: one loop at a time, over what the notification holds."""
    for loop in tree.find_all(nodes.For):
        if any(True for _ in loop.find_all(nodes.For)):
            raise SecurityError("a loop within a loop is not offered")
    for node in tree.find_all(_FORBIDDEN):
        raise SecurityError(f"{type(node).__name__} is not offered")
    for found in tree.find_all(nodes.Filter):
        if found.name not in _FILTERS:
            raise SecurityError(f"the filter {found.name!r} is not offered")
    for call in tree.find_all(nodes.Call):
        if not (isinstance(call.node, nodes.Getattr) and call.node.attr in _METHODS):
            raise SecurityError("only get, items, keys and values may be called")


def _check_json(text: str) -> None:
    try:
        json.loads(text)
    except ValueError:
        raise invalid("bodyTemplate", "does not make JSON: use the tojson filter") from None
