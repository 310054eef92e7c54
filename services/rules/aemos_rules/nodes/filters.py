"""Filters that remember nothing: conditions, and the hours of a week."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import Meta

from ..conditions import PREVIOUS
from ..domain import VARIABLE_TYPES, InvalidChain, Reading, VariableType
from ..run import Run
from .registry import Cel, Filter, NodeKind, Text, VariableTypes

Day: TypeAlias = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
TimeOfDay: TypeAlias = Annotated[
    str, Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$|^24:00$", description="a time of day such as 08:30")
]


class OfSensor(NodeKind):
    """Judges readings of one sensor and variable, as far as they are named; has no outcome for others."""

    sensor_uuid: Text = msgspec.field(name="sensorUUID", default="")
    variable_name: Text = ""

    def compile(self, types: VariableTypes) -> None:
        self.sensor_uuids = frozenset({self.sensor_uuid} - {""})

    def _candidates(self, types: VariableTypes) -> Iterable[VariableType]:
        """The types of the variables that may come, as far as they are known; else all there are."""
        sensor, variable = self.sensor_uuid, self.variable_name
        known = {kind for (of, name), kind in types.items() if of == sensor and variable in ("", name)}
        return [kind for kind in VARIABLE_TYPES if kind in known] or VARIABLE_TYPES

    def _concerns(self, reading: Reading | None) -> bool:
        if reading is None or (self.sensor_uuid and reading.sensor_uuid != self.sensor_uuid):
            return False
        return not self.variable_name or reading.variable_name == self.variable_name


class Condition(OfSensor, Filter, kind="condition"):
    """True when a reading of the sensor (and variable, if named) satisfies the condition."""

    sensor_uuid: Text = msgspec.field(name="sensorUUID")
    condition: Cel

    def compile(self, types: VariableTypes) -> None:
        super().compile(types)
        self._conditions = self.expression("condition", self.condition, self._candidates(types))
        self.remembers = PREVIOUS in self._conditions.first.words
        if self.remembers:
            self.apply = self._apply_after_previous  # type: ignore[method-assign]

    def apply(self, run: Run) -> bool | None:
        reading = run.reading
        if reading is None or reading.sensor_uuid != self.sensor_uuid:
            return None
        if self.variable_name and reading.variable_name != self.variable_name:
            return None
        condition = self._conditions[reading.variable_type]
        return None if condition is None else condition.holds(run)

    def _apply_after_previous(self, run: Run) -> bool | None:
        """False until there is a previous value; a late reading has no outcome."""
        reading = run.reading
        if not self._concerns(reading) or reading is None:
            return None
        mark, previous = self._remembered(run)
        if run.mark <= mark:
            return None
        run.remember(self.name, (run.mark, reading.value))
        condition = self._conditions[reading.variable_type]
        return previous is not None and condition is not None and condition.holds(run, previous)

    def _remembered(self, run: Run) -> tuple[tuple[int, int], Any]:
        return run.recall(self.name, tuple[tuple[int, int], Any]) or ((0, 0), None)

    def values(self, run: Run) -> Mapping[str, Any]:
        condition = self._conditions.on(run)
        if condition is None or not self._concerns(run.reading):
            return {}
        return condition.inputs(run, self._remembered(run)[1] if self.remembers else None)


class Schedule(Filter, kind="schedule"):
    """True within the hours of these days in a time zone, by the time of the event; `until` before `from`: over
    midnight."""

    days: list[Day] = msgspec.field(default_factory=lambda: list(_DAYS))
    from_: TimeOfDay = msgspec.field(name="from", default="00:00")
    until: TimeOfDay = "24:00"
    timezone: Text = "UTC"

    def compile(self, types: VariableTypes) -> None:
        try:
            self._zone = ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise InvalidChain([("timezone", "must be an IANA time zone such as Europe/Berlin")]) from None
        self._days = frozenset(map(_DAYS.index, self.days))

    def apply(self, run: Run) -> bool:
        day, clock = self._local(run)
        if self.from_ < self.until:
            return day in self._days and self.from_ <= clock < self.until
        return (day in self._days and clock >= self.from_) or ((day - 1) % 7 in self._days and clock < self.until)

    def _local(self, run: Run) -> tuple[int, str]:
        at = datetime.fromtimestamp(run.mark[0] / 1000, UTC).astimezone(self._zone)
        return at.weekday(), f"{at:%H:%M}"

    def values(self, run: Run) -> Mapping[str, Any]:
        day, clock = self._local(run)
        return {"day": _DAYS[day], "time": clock}
