"""Subscriptions: which notifications they are for, and what may be saved. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec
from aemos.v1 import subscription_pb2 as pb
from aemos_core.errors import AemosError, FieldError, Kind
from google.protobuf import json_format

MOST_PER_ORGANIZATION = 1_000
MOST_REPEATS = 20
_MOST_NAME, _MOST_SUBJECT, _MOST_BODY, _MOST_TARGET = 200, 1_000, 16_000, 2_000
_MOST_HOURLY, _MOST_MINUTES = 3_600, 1_440
_MOST_FILTER = 16_000


class Status(StrEnum):
    """What became of a delivery."""

    QUEUED = "queued"
    SENT = "sent"
    FAILED = "failed"
    DEAD = "dead"
    SUPPRESSED = "suppressed"
    ACKNOWLEDGED = "acknowledged"


OPEN = (Status.QUEUED, Status.FAILED)
"""What will be tried."""


class Filter(msgspec.Struct, frozen=True, rename="camel"):
    """Which notifications; what is empty stands for any."""

    event_types: tuple[str, ...] = ()
    severities: tuple[str, ...] = ()
    device_uuids: tuple[str, ...] = ()
    device_label: str = ""
    state_values: tuple[str, ...] = ()

    def matches(self, notification: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
        """Whether a notification of a device with these labels is one of them."""
        metadata = notification.get("metadata")
        values = metadata if isinstance(metadata, Mapping) else {}
        asked = (
            (self.event_types, notification.get("type")),
            (self.severities, values.get("severity")),
            (self.device_uuids, notification.get("deviceUuid")),
            (self.state_values, values.get("newValue")),
        )
        if any(allowed and found not in allowed for allowed, found in asked):
            return False
        key, _, value = self.device_label.partition("=")
        return not key or labels.get(key) == value


def check(draft: pb.Subscription) -> None:
    """INVALID with every field that is wrong; what only the channel knows, such as its targets, is asked there."""
    mistakes = [FieldError(loc, message) for loc, message in _mistakes(draft) if message]
    if mistakes:
        detail = "; ".join(f"{m.loc}: {m.message}" for m in mistakes)
        raise AemosError(Kind.INVALID, detail, reason="invalid_subscription", errors=mistakes)


def filter_json(wanted: pb.NotificationFilter) -> str:
    """A filter as it is stored, which `Filter` reads."""
    return msgspec.json.encode(json_format.MessageToDict(wanted)).decode()


def _mistakes(draft: pb.Subscription) -> list[tuple[str, str]]:
    size, label = len(filter_json(draft.filter).encode()), draft.filter.device_label
    return [
        ("name", "" if 0 < len(draft.name) <= _MOST_NAME else f"must have 1 to {_MOST_NAME} characters"),
        ("target", "" if 0 < len(draft.target) <= _MOST_TARGET else f"must have 1 to {_MOST_TARGET} characters"),
        ("subjectTemplate", _too_long(draft.subject_template, _MOST_SUBJECT)),
        ("bodyTemplate", _too_long(draft.body_template, _MOST_BODY)),
        ("hourlyLimit", "" if 1 <= draft.hourly_limit <= _MOST_HOURLY else f"must be 1 to {_MOST_HOURLY}"),
        ("repeatMinutes", "" if 0 <= draft.repeat_minutes <= _MOST_MINUTES else f"must be 0 to {_MOST_MINUTES}"),
        ("filter", "" if size <= _MOST_FILTER else f"must have at most {_MOST_FILTER} bytes as JSON"),
        ("filter.deviceLabel", "" if not label or label.find("=") > 0 else 'must be "key=value"'),
    ]


def _too_long(text: str, most: int) -> str:
    return f"must have at most {most} characters" if len(text) > most else ""
