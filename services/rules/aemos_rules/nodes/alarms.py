"""Actions that raise and clear alarms of the device of the reading."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta

from ..alarms import CLEARED, SEVERITIES, AlarmAssertion
from ..domain import NodeFailed
from ..run import Run
from .actions import filled
from .registry import Action, Configuration, Place

AlarmType: TypeAlias = Annotated[
    str, Meta(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_.-]+$", description="1 to 100 of A-Z a-z 0-9 _ . -")
]
Severity: TypeAlias = Annotated[
    Literal["critical", "major", "minor", "warning", "info"], Meta(description=f"one of {', '.join(SEVERITIES)}")
]
Message: TypeAlias = Annotated[str, Meta(max_length=500, description="a text of at most 500 characters")]


class RaiseAlarm(Action, kind="raiseAlarm"):
    """Raises an alarm of the device, or changes the severity of the active one of that type. `{value}` and `{name}` of
    the run's data may stand in the message."""

    class Config(Configuration, kw_only=True):
        alarm_type: AlarmType
        severity: Severity = "warning"
        message: Message = ""

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self._type, self._severity, self._message = config.alarm_type, config.severity, config.message

    def apply(self, run: Run) -> bool | None:
        if run.reading is None:
            raise NodeFailed("an alarm needs a reading, whose device it is about")
        message = filled(self._message, run)[:500]
        run.effects.append(AlarmAssertion(self._type, self._severity, message, run.chain.id, run.reading, run.at_ms))
        return True


class ClearAlarm(Action, kind="clearAlarm"):
    """Clears the device's active alarm of that type, if there is one."""

    class Config(Configuration, kw_only=True):
        alarm_type: AlarmType

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self._type = config.alarm_type

    def apply(self, run: Run) -> bool | None:
        if run.reading is None:
            raise NodeFailed("an alarm needs a reading, whose device it is about")
        run.effects.append(AlarmAssertion(self._type, CLEARED, "", run.chain.id, run.reading, run.at_ms))
        return True
