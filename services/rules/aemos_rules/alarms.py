"""Alarms: at most one is active for a device and type, and assertions move it only forward in event time. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, TypeAlias

from aemos_rules.domain import Reading, Watermark

SEVERITIES = ("critical", "major", "minor", "warning", "info")
CLEARED = ""
"""The severity of an alarm that is not active."""

AlarmKey: TypeAlias = tuple[int, str]
"""(device id, type)."""


class What(StrEnum):
    """What happens to an alarm."""

    RAISED = "raised"
    SEVERITY = "severity"
    CLEARED = "cleared"
    ACKNOWLEDGED = "acknowledged"


class AlarmAssertion(NamedTuple):
    """A run says of the device of its reading: this alarm has this severity (`value`), or is CLEARED."""

    type: str
    value: str
    message: str
    chain_id: int
    reading: Reading
    at_ms: int = 0
    """Event time of a deadline, where it is not the reading's."""

    @property
    def moment(self) -> int:
        """Event time."""
        return self.at_ms or self.reading.received_at_ms

    @property
    def key(self) -> AlarmKey:
        """The alarm it is about."""
        return (self.reading.device_id, self.type)

    @property
    def watermark(self) -> Watermark:
        """Its place in event time."""
        return (self.moment, self.reading.id, self.chain_id)


def happened(old: str, new: str) -> What:
    """What it is when an alarm's severity becomes another one."""
    if new == CLEARED:
        return What.CLEARED
    return What.RAISED if old == CLEARED else What.SEVERITY
