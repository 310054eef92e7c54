"""Transforms that remember nothing: they add to the run's data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from ..conditions import FETCHED
from ..domain import VARIABLE_TYPES, NodeFailed
from ..run import Run
from .filters import by_type
from .registry import Cel, Configuration, Number, Place, Text, Transform

Name: TypeAlias = Annotated[
    str, Meta(pattern=r"^[A-Za-z_]\w{0,63}$", description="a name of letters, digits and underscores")
]
Names: TypeAlias = Annotated[
    dict[Name, Cel], Meta(min_length=1, max_length=50, description="1 to 50 names, each with an expression in CEL")
]


class OfField(Configuration, kw_only=True):
    """`field` is a value of the transforms before; the reading's own when absent."""

    field: Text = ""


class _Arithmetic(Transform):
    """From one number to others; there is none on a schedule, and the run ends here."""

    Config = OfField

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self._field: str = config.field

    def apply(self, run: Run) -> bool | None:
        if run.reading is None and not self._field:
            return None
        made = self._made(run.number(self._field))
        for value in made.values():
            if value - value != 0:
                raise NodeFailed("the result is too large")
        run.data = {**run.data, **made} if run.data else made
        return True

    def _made(self, value: float) -> dict[str, Any]:
        raise NotImplementedError


def _rounded(value: float) -> float:
    # A millionth of a degree is finer than any sensor and coarser than binary noise (37.7 is 99.86000000000001);
    # adding 0.0 makes -0.0 zero.
    return round(value, 6) + 0.0


class ConvertToFahrenheit(_Arithmetic, kind="convertToFahrenheit"):
    """Adds valueCelsius and valueFahrenheit of a number in degrees Celsius."""

    def _made(self, value: float) -> dict[str, Any]:
        return {"valueCelsius": value, "valueFahrenheit": _rounded(value * 9 / 5 + 32)}


class ConvertToCelsius(_Arithmetic, kind="convertToCelsius"):
    """Adds valueFahrenheit and valueCelsius of a number in degrees Fahrenheit."""

    def _made(self, value: float) -> dict[str, Any]:
        return {"valueFahrenheit": value, "valueCelsius": _rounded((value - 32) * 5 / 9)}


class Scale(_Arithmetic, kind="scale"):
    """Adds value * factor + offset, as `valueScaled` unless it is named."""

    class Config(OfField, kw_only=True):
        factor: Number = 1.0
        offset: Number = 0.0
        name: Name = "valueScaled"

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self._factor, self._offset, self._name = config.factor, config.offset, config.name

    def _made(self, value: float) -> dict[str, Any]:
        return {self._name: value * self._factor + self._offset}


class Map(Transform, kind="map"):
    """Adds the result of each expression under its name; each sees the data as it was before."""

    class Config(Configuration, kw_only=True):
        values: Names

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self._values = {
            name: by_type(f"values.{name}", expression, VARIABLE_TYPES, is_condition=False)
            for name, expression in config.values.items()
        }
        self.needs = frozenset[str]().union(*(value.words for value in self._values.values())) & FETCHED
        self.other_sensor_uuids = frozenset[str]().union(*(value.named_sensors for value in self._values.values()))

    def apply(self, run: Run) -> bool | None:
        kind, value = ("json", None) if run.reading is None else (run.reading.variable_type, run.reading.value)
        made = {}
        for name, expressions in self._values.items():
            expression = expressions.of(kind)  # type: ignore[arg-type]
            if expression is None:
                raise NodeFailed(f"'{name}' makes no sense for a {kind}")
            made[name] = expression.result(value, run)
        run.data = {**run.data, **made}
        return True


class Latest(Configuration, kw_only=True):
    """A variable of a sensor."""

    sensor_uuid: Text = msgspec.field(name="sensorUUID")
    variable_name: Text


class Enrich(Transform, kind="enrich"):
    """Adds attributes of the reading's device, and the latest values of other sensors under names; what is missing is
    null."""

    class Config(Configuration, kw_only=True):
        attributes: list[Text] = []  # noqa: RUF012  msgspec copies it
        sensors: dict[Name, Latest] = {}  # noqa: RUF012

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self._attributes: list[str] = config.attributes
        self._sensors: Mapping[str, Latest] = config.sensors
        self.needs = frozenset(["device"] * bool(self._attributes) + ["sensors"] * bool(self._sensors))
        self.other_sensor_uuids = frozenset(latest.sensor_uuid for latest in self._sensors.values())

    def apply(self, run: Run) -> bool | None:
        context, reading = run.world.context, run.reading
        device = context.word("device", reading) if context and self._attributes else {}
        latest = context.word("sensors", reading) if context and self._sensors else {}
        attributes = device.get("attributes", {})
        made = {name: attributes.get(name) for name in self._attributes}
        for name, wanted in self._sensors.items():
            made[name] = latest.get(wanted.sensor_uuid, {}).get(wanted.variable_name)
        run.data = {**run.data, **made}
        return True
