"""Transforms that remember nothing: they add to the run's data."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from ..domain import NodeFailed
from ..run import Run
from .registry import Cel, Number, Text, Transform, VariableTypes

Name: TypeAlias = Annotated[
    str, Meta(pattern=r"^[A-Za-z_]\w{0,63}$", description="a name of letters, digits and underscores")
]
Names: TypeAlias = Annotated[
    dict[Name, Cel], Meta(min_length=1, max_length=50, description="1 to 50 names, each with an expression in CEL")
]


class _Arithmetic(Transform):
    """From one number to others; there is none on a schedule, and the run ends here.

    `field` is a value of the transforms before; the reading's own when absent.
    """

    field: Text = ""

    def apply(self, run: Run) -> bool | None:
        if run.reading is None and not self.field:
            return None
        made = self._made(run.number(self.field))
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

    factor: Number = 1.0
    offset: Number = 0.0
    result: Name = msgspec.field(name="name", default="valueScaled")

    def _made(self, value: float) -> dict[str, Any]:
        return {self.result: value * self.factor + self.offset}


class Map(Transform, kind="map"):
    """Adds the result of each expression under its name; each sees the data as it was before."""

    expressions: Names = msgspec.field(name="values")

    def compile(self, types: VariableTypes) -> None:
        self._values = {
            name: self.expression(f"values.{name}", text, is_condition=False) for name, text in self.expressions.items()
        }

    def apply(self, run: Run) -> bool | None:
        made = {}
        for name, expressions in self._values.items():
            expression = expressions.on(run)
            if expression is None:
                raise NodeFailed(
                    f"'{name}' makes no sense for a {run.reading.variable_type if run.reading else 'json'}"
                )
            made[name] = expression.result(run)
        run.data = {**run.data, **made}
        return True


class Latest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """A variable of a sensor."""

    sensor_uuid: Text = msgspec.field(name="sensorUUID")
    variable_name: Text


class Enrich(Transform, kind="enrich"):
    """Adds attributes of the reading's device, and the latest values of other sensors under names; what is missing is
    null."""

    attributes: list[Text] = []  # noqa: RUF012  msgspec copies it
    sensors: dict[Name, Latest] = {}  # noqa: RUF012

    def compile(self, types: VariableTypes) -> None:
        self.needs = frozenset(["device"] * bool(self.attributes) + ["sensors"] * bool(self.sensors))
        self.other_sensor_uuids = frozenset(latest.sensor_uuid for latest in self.sensors.values())

    def apply(self, run: Run) -> bool | None:
        context, reading = run.world.context, run.reading
        device = context.word("device", reading) if self.attributes else {}
        latest = context.word("sensors", reading) if self.sensors else {}
        attributes = device.get("attributes", {})
        made = {name: attributes.get(name) for name in self.attributes}
        for name, wanted in self.sensors.items():
            made[name] = latest.get(wanted.sensor_uuid, {}).get(wanted.variable_name)
        run.data = {**run.data, **made}
        return True
