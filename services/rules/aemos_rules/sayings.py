"""What CEL says about a condition, in the words of the chain's author."""

from __future__ import annotations

import re
from collections.abc import Callable

LOOPS = ("all", "exists", "exists_one", "filter", "map")

ERROR = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): (.*)")
_STATUS = re.compile(r"^[A-Z_]+: | \[[A-Z_]+\]$")
_TYPE = re.compile(r"\b(double|string|bool|dyn|int)(?:64)?\b")
_TYPE_NAMES = {"double": "number", "string": "text", "bool": "boolean", "dyn": "json", "int": "integer"}


def _named(types: str) -> str:
    return _TYPE.sub(lambda found: _TYPE_NAMES[found[1]], types)


def _does_not_take(found: re.Match[str]) -> str:
    return f"'{found['name'].replace('_', '')}' does not take ({_named(found['types'])})"


# What CEL says -> what the chain's author reads. The first full match counts.
_SAYINGS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r".*recursion.*", "nested too deeply, or too many terms in a row: at most 32"),
    (r"Syntax error: .*?'<EOF>' expecting.*", "ends too early"),
    (r"Syntax error: token recognition error at: '(.*?)'?", r"cannot read '\1'"),
    (r"Syntax error: .*? input '(.*?)'.*", r"unexpected '\1'"),
    (rf"undeclared reference to '({'|'.join(LOOPS)})'.*", r"'\1' is not offered: conditions have no loops"),
    (r"undeclared reference to '(.*?)'.*", r"unknown name '\1'"),
    (r"found no matching overload for '(?P<name>.*?)' applied to '\((?P<types>.*?)\)'.*", _does_not_take),
    (r"No matching overloads found : (?P<name>[^(]+)\((?P<types>.*)\)", _does_not_take),
    (r"No matching overloads found : \((?P<types>.*?)\)\.(?P<name>\w+)\(.*\)", _does_not_take),
    (r"expression of type '(.*?)' cannot be.* select.*", lambda found: f"a {_named(found[1])} has no fields"),
    (r"Applying SELECT to non-message type", "only an object has fields"),
    (r"basic_string.*|compile\(\): incompatible.*", "not valid Unicode"),
)


def plain(message: str) -> str:
    """One line for the chain's author: no status codes, no grammar, at most 200 characters."""
    line = _STATUS.sub("", message.partition("\n")[0])
    for pattern, saying in _SAYINGS:
        if found := re.fullmatch(pattern, line):
            line = found.expand(saying) if isinstance(saying, str) else saying(found)
            break
    return line[:200]
