"""Labels and attributes of devices, as they are stored: JSON text, labels in the order of their keys. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from aemos_core.errors import invalid, malformed

MOST_LABELS = 32
MOST_VALUE = 200
MOST_ATTRIBUTES_BYTES = 16 * 1024
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,63}")


def labels_of(stored: str | None) -> dict[str, str]:
    """The labels in a column."""
    return msgspec.json.decode(stored, type=dict[str, str]) if stored else {}


def attributes_of(stored: str | None) -> dict[str, Any]:
    """The attributes in a column."""
    return msgspec.json.decode(stored, type=dict[str, Any]) if stored else {}


def merged_labels(stored: str | None, changes: Mapping[str, str]) -> str:
    """The column after a change, in which an empty value removes a label; INVALID names the wrong one."""
    for key, value in changes.items():
        if not _KEY.fullmatch(key):
            raise invalid(f"labels.{key}", "a key is 1 to 63 of A-Z a-z 0-9 _ . -")
        if len(value) > MOST_VALUE:
            raise invalid(f"labels.{key}", f"must have at most {MOST_VALUE} characters")
        if "\0" in value:
            raise malformed("the character NUL is not text")
    labels = {key: value for key, value in {**labels_of(stored), **changes}.items() if value}
    if len(labels) > MOST_LABELS:
        raise invalid("labels", f"must be at most {MOST_LABELS}")
    return _json(labels)


def stored_attributes(attributes: Mapping[str, Any]) -> str:
    """The column; INVALID when it would be too long."""
    text = _json(attributes)
    if len(text.encode()) > MOST_ATTRIBUTES_BYTES:
        raise invalid("attributes", f"must have at most {MOST_ATTRIBUTES_BYTES} bytes as JSON")
    return text


def part_of_labels(label: str) -> str:
    """What the column of a device with the label "key=value" contains, and no other's does.

    A quotation mark inside a value is escaped, so one that is not begins or ends a text; no key contains one.
    """
    key, equals, value = label.partition("=")
    if not equals or not _KEY.fullmatch(key) or not value:
        raise invalid("label", 'must be "key=value"')
    return _json({key: value})[1:-1]


def _json(value: object) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()
