"""Subscriptions: which notifications they are for, and what may be saved. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec
from aemos_core.errors import AemosError, FieldError, Kind

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


class Facts(NamedTuple):
    """What filters look at in a notification."""

    event_type: object
    severity: object
    device_uuid: object
    state_value: object

    @classmethod
    def of(cls, notification: Mapping[str, Any]) -> Facts:
        """Those of a notification; None for what it has not."""
        metadata = notification.get("metadata")
        values = metadata if isinstance(metadata, Mapping) else {}
        kind, device = notification.get("type"), notification.get("deviceUuid")
        return cls(kind, values.get("severity"), device, values.get("newValue"))


class Filter(msgspec.Struct, frozen=True, rename="camel"):
    """Which notifications; what is empty stands for any."""

    event_types: tuple[str, ...] = ()
    severities: tuple[str, ...] = ()
    device_uuids: tuple[str, ...] = ()
    device_label: str = ""
    state_values: tuple[str, ...] = ()

    def matches(self, facts: Facts, labels: Mapping[str, str]) -> bool:
        """Whether a notification of a device with these labels is one of them."""
        for allowed, found in zip(
            (self.event_types, self.severities, self.device_uuids, self.state_values), facts, strict=True
        ):
            if allowed and found not in allowed:
                return False
        key, _, value = self.device_label.partition("=")
        return not key or labels.get(key) == value


@dataclass(frozen=True, slots=True)
class Subscription:
    """Who is told of what. `secret` is a webhook's; `old_secret` signs too until `old_until_ms`."""

    id: int
    organization_id: int
    name: str
    enabled: bool
    channel: str
    target: str
    filter: Filter = field(default_factory=Filter)
    subject_template: str = ""
    body_template: str = ""
    hourly_limit: int = 60
    repeat_minutes: int = 0
    secret: str = ""
    old_secret: str = ""
    old_until_ms: int = 0
    created_at_ms: int = 0

    def secrets(self, now_ms: int) -> list[str]:
        """Those that sign now, the newest first."""
        return [self.secret] + ([self.old_secret] if self.old_secret and now_ms < self.old_until_ms else [])


def check(draft: Subscription) -> None:
    """INVALID with every field that is wrong; what only the channel knows, such as its targets, is asked there."""
    mistakes = [FieldError(loc, message) for loc, message in _mistakes(draft) if message]
    if mistakes:
        detail = "; ".join(f"{m.loc}: {m.message}" for m in mistakes)
        raise AemosError(Kind.INVALID, detail, reason="invalid_subscription", errors=mistakes)


def _mistakes(draft: Subscription) -> list[tuple[str, str]]:
    size = len(msgspec.json.encode(draft.filter))
    return [
        ("name", "" if 0 < len(draft.name) <= _MOST_NAME else f"must have 1 to {_MOST_NAME} characters"),
        ("target", "" if 0 < len(draft.target) <= _MOST_TARGET else f"must have 1 to {_MOST_TARGET} characters"),
        ("subjectTemplate", _too_long(draft.subject_template, _MOST_SUBJECT)),
        ("bodyTemplate", _too_long(draft.body_template, _MOST_BODY)),
        ("hourlyLimit", "" if 1 <= draft.hourly_limit <= _MOST_HOURLY else f"must be 1 to {_MOST_HOURLY}"),
        ("repeatMinutes", "" if 0 <= draft.repeat_minutes <= _MOST_MINUTES else f"must be 0 to {_MOST_MINUTES}"),
        ("filter", "" if size <= _MOST_FILTER else f"must have at most {_MOST_FILTER} bytes as JSON"),
        ("filter.deviceLabel", "" if "=" in (draft.filter.device_label or "=") else 'must be "key=value"'),
    ]


def _too_long(text: str, most: int) -> str:
    return f"must have at most {most} characters" if len(text) > most else ""
