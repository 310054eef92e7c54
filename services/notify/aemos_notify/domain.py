"""What a client subscribes, and what it has heard of that."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aemos_core.errors import invalid
from aemos_core.notification_log import LogId, parse_log_id

_UUID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_IDS = ("deviceId", "organizationId", "ruleChainId")
KINDS = ("deviceUuid", "deviceId", "sensorUuid", "organizationId", "alarms", "ruleChainId")
"""What a subscription may name, one of them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the argument of `subscribe` or `unsubscribe` says."""

    kind: str
    """One of KINDS."""
    value: str | int
    after: LogId | None
    """The last notification heard: what was missed since is to be replayed."""
    all_readings: bool
    """Each reading, rather than the newest ten times a second."""

    @property
    def name(self) -> tuple[str, str | int]:
        """What it names, and how."""
        return self.kind, self.value


@dataclass(frozen=True, slots=True)
class Subject:
    """What somebody may hear of one thing: rooms of notifications, and of readings, "" when it has none."""

    names: frozenset[tuple[str, str | int]]
    """(kind, value) pairs by which it may be asked for."""
    rooms: tuple[str, ...]
    readings: str = ""


def wanted(arguments: Sequence[Any]) -> Wanted:
    """Of an event's arguments; INVALID names the field that is wrong."""
    named: Mapping[str, Any] = arguments[0] if arguments and isinstance(arguments[0], dict) else {}
    found = [(kind, named[kind]) for kind in KINDS if kind in named]
    if len(found) != 1 or not _is_good(*found[0]):
        raise invalid(found[0][0] if found else "deviceUuid", f"is required, or one of {', '.join(KINDS[1:])}")
    after = named.get("after")
    if not (after is None or (isinstance(after, str) and after)):
        raise invalid("after", "is not a notification's id")
    readings = named.get("readings", "coalesced")
    if readings not in ("coalesced", "all"):
        raise invalid("readings", "is coalesced or all")
    return Wanted(*found[0], None if after is None else parse_log_id(after, "after"), readings == "all")


def _is_good(kind: str, value: Any) -> bool:
    if kind == "alarms":
        return value is True
    if kind in _IDS:
        return type(value) is int and 0 < value < 2**63
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


@dataclass(slots=True)
class Coverage:
    """What a client has heard: for each of its rooms the place behind which it hears everything."""

    since: dict[str, LogId]

    def includes(self, log_id: LogId, rooms: Sequence[str]) -> bool:
        """Whether the notification is heard in one of the rooms."""
        return any(log_id > self.since[room] for room in rooms if room in self.since)

    def with_rooms(self, rooms: Sequence[str], after: LogId) -> Coverage:
        """From now on these rooms as well, behind `after`."""
        return Coverage({**self.since, **{room: min(after, self.since.get(room, after)) for room in rooms}})

    def without(self, rooms: Sequence[str]) -> Coverage:
        """These rooms no more."""
        return Coverage({room: after for room, after in self.since.items() if room not in rooms})
