"""Alarms: at most one is active for a device and type, and assertions move it only forward in event time. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from aemos_rules.domain import NEVER, Reading, Watermark

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
    """A run says of the device of its reading: this alarm has this severity, or is CLEARED."""

    type: str
    severity: str
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


@dataclass(frozen=True, slots=True)
class AlarmRow:
    """The newest alarm of a device and type; id 0: there is none yet."""

    id: int = 0
    severity: str = CLEARED
    watermark: Watermark = NEVER


@dataclass(frozen=True, slots=True)
class AlarmChange:
    """One thing that happened, in order."""

    what: What
    severity: str
    """From then on; of a cleared one, what it was."""
    assertion: AlarmAssertion


def fold(current: AlarmRow, assertions: Iterable[AlarmAssertion]) -> tuple[Watermark, list[AlarmChange]]:
    """The watermark and the changes after `assertions`, all of this alarm, in the order they came.

    What is at or before the watermark is ignored, so a repeated job repeats nothing and a late reading neither raises
    nor clears; an equal severity advances the watermark only.
    """
    severity, watermark = current.severity, current.watermark
    changes: list[AlarmChange] = []
    for assertion in assertions:
        if assertion.watermark <= watermark:
            continue
        watermark = assertion.watermark
        if assertion.severity == severity:
            continue
        if assertion.severity == CLEARED:
            changes.append(AlarmChange(What.CLEARED, severity, assertion))
        else:
            what = What.SEVERITY if severity else What.RAISED
            changes.append(AlarmChange(what, assertion.severity, assertion))
        severity = assertion.severity
    return watermark, changes
