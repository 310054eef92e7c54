"""Filters that remember nothing: conditions, and the hours of a week."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import Meta

from ..conditions import FETCHED, PREVIOUS, ByType, InvalidCondition
from ..domain import VARIABLE_TYPES, Reading, VariableType
from ..run import Run
from .registry import Cel, Configuration, Filter, InvalidConfig, NodeKind, Place, Text, VariableTypes

Day: TypeAlias = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
TimeOfDay: TypeAlias = Annotated[
    str, Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$|^24:00$", description="a time of day such as 08:30")
]


def by_type(field: str, expression: str, candidates: Iterable[VariableType], is_condition: bool = True) -> ByType:
    """The expression of a configuration's field; InvalidConfig with the place of its mistake."""
    try:
        return ByType(expression, candidates, is_condition)
    except InvalidCondition as error:
        raise InvalidConfig([(field, str(error))]) from None


def candidates(sensor_uuid: str, variable: str, types: VariableTypes) -> Iterable[VariableType]:
    """The types of the variables that may come, as far as they are known; else all there are."""
    known = {
        kind for (sensor, name), kind in types.items() if sensor == sensor_uuid and (not variable or variable == name)
    }
    return [kind for kind in VARIABLE_TYPES if kind in known] or VARIABLE_TYPES


class SensorConfig(Configuration, kw_only=True):
    """Readings of one sensor, and of one of its variables if named."""

    sensor_uuid: Text = msgspec.field(name="sensorUUID")
    variable_name: Text = ""


class OfSensor(NodeKind):
    """Has no outcome for other readings than those of its sensor and its variable, as far as they are named."""

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self._sensor_uuid, self._variable = config.sensor_uuid, config.variable_name
        self.sensor_uuids = frozenset({config.sensor_uuid} - {""})

    def _concerns(self, reading: Reading | None) -> bool:
        if reading is None or (self._sensor_uuid and reading.sensor_uuid != self._sensor_uuid):
            return False
        return not self._variable or reading.variable_name == self._variable


class Condition(OfSensor, Filter, kind="condition"):
    """True when a reading of the sensor (and variable, if named) satisfies the condition."""

    class Config(SensorConfig, kw_only=True):
        condition: Cel

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        known = candidates(config.sensor_uuid, config.variable_name, place.variable_types)
        self._conditions = by_type("condition", config.condition, known)
        self.needs = self._conditions.words & FETCHED
        self.other_sensor_uuids = self._conditions.named_sensors
        self.remembers = PREVIOUS in self._conditions.words
        if self.remembers:
            self.apply = self._apply_after_previous  # type: ignore[method-assign]

    def apply(self, run: Run) -> bool | None:
        reading = run.reading
        if reading is None or reading.sensor_uuid != self._sensor_uuid:
            return None
        if self._variable and reading.variable_name != self._variable:
            return None
        condition = self._conditions.of(reading.variable_type)
        return None if condition is None else condition.holds(reading.value, run)

    def _apply_after_previous(self, run: Run) -> bool | None:
        """False until there is a previous value; a late reading has no outcome."""
        reading = run.reading
        if not self._concerns(reading) or reading is None:
            return None
        mark, previous = self._remembered(run)
        if run.mark <= mark:
            return None
        run.remember(self.name, (run.mark, reading.value))
        condition = self._conditions.of(reading.variable_type)
        if previous is None or condition is None:
            return False
        return condition.holds(reading.value, run, previous)

    def _remembered(self, run: Run) -> tuple[tuple[int, int], Any]:
        return run.recall(self.name, tuple[tuple[int, int], Any]) or ((0, 0), None)

    def values(self, run: Run) -> Mapping[str, Any]:
        if not self._concerns(run.reading) or run.reading is None:
            return {}
        condition = self._conditions.of(run.reading.variable_type)
        previous = self._remembered(run)[1] if self.remembers else None
        return {} if condition is None else condition.inputs(run.reading.value, run, previous)


class Schedule(Filter, kind="schedule"):
    """True within the hours of these days in a time zone, by the time of the event; `until` before `from`: over
    midnight."""

    class Config(Configuration, kw_only=True):
        days: list[Day] = msgspec.field(default_factory=lambda: list(_DAYS))
        from_: TimeOfDay = msgspec.field(name="from", default="00:00")
        until: TimeOfDay = "24:00"
        timezone: Text = "UTC"

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        try:
            self._zone = ZoneInfo(config.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise InvalidConfig([("timezone", "must be an IANA time zone such as Europe/Berlin")]) from None
        self._days = frozenset(map(_DAYS.index, config.days))
        self._from, self._until = config.from_, config.until

    def apply(self, run: Run) -> bool:
        day, clock = self._local(run)
        if self._from < self._until:
            return day in self._days and self._from <= clock < self._until
        return (day in self._days and clock >= self._from) or ((day - 1) % 7 in self._days and clock < self._until)

    def _local(self, run: Run) -> tuple[int, str]:
        at = datetime.fromtimestamp(run.mark[0] / 1000, UTC).astimezone(self._zone)
        return at.weekday(), f"{at:%H:%M}"

    def values(self, run: Run) -> Mapping[str, Any]:
        day, clock = self._local(run)
        return {"day": _DAYS[day], "time": clock}
