"""Actions that raise and clear alarms of the device of the reading."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta

from ..alarms import CLEARED, SEVERITIES, AlarmAssertion
from ..domain import NodeFailed
from ..run import Run
from .actions import filled
from .registry import Action

AlarmType: TypeAlias = Annotated[
    str, Meta(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_.-]+$", description="1 to 100 of A-Z a-z 0-9 _ . -")
]
Severity: TypeAlias = Annotated[
    Literal["critical", "major", "minor", "warning", "info"], Meta(description=f"one of {', '.join(SEVERITIES)}")
]
Message: TypeAlias = Annotated[str, Meta(max_length=500, description="a text of at most 500 characters")]


class OfAlarm(Action):
    """Asserts an alarm."""

    alarm_type: AlarmType

    def _assert(self, run: Run, severity: str, message: str) -> bool:
        if run.reading is None:
            raise NodeFailed("an alarm needs a reading, whose device it is about")
        run.effects.append(AlarmAssertion(self.alarm_type, severity, message, run.chain.id, run.reading, run.at_ms))
        return True


class RaiseAlarm(OfAlarm, kind="raiseAlarm"):
    """Raises an alarm of the device, or changes the severity of the active one of that type. `{value}` and `{name}` of
    the run's data may stand in the message."""

    severity: Severity = "warning"
    message: Message = ""

    def apply(self, run: Run) -> bool | None:
        return self._assert(run, self.severity, filled(self.message, run)[:500])


class ClearAlarm(OfAlarm, kind="clearAlarm"):
    """Clears the device's active alarm of that type, if there is one."""

    def apply(self, run: Run) -> bool | None:
        return self._assert(run, CLEARED, "")
