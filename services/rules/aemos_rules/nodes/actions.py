"""Actions: each says what follows; whoever applies its effect carries it out, once."""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import msgspec

from ..conditions import FETCHED
from ..domain import VARIABLE_TYPES, DerivedReading, NodeFailed, Notice, StateAssertion
from ..run import Cell, Deadline, Run
from .filters import by_type
from .registry import Action, Cel, Configuration, Id, InvalidConfig, Place, Seconds, Text

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def filled(text: str, run: Run) -> str:
    """The text with `{value}`, and `{name}` of the run's data, replaced; other braces stay."""
    known = run.data if run.reading is None else {"value": run.reading.value, **run.data}
    return _PLACEHOLDER.sub(lambda found: str(known.get(found[1], found[0])), text)


class SetDeviceState(Action, kind="setDeviceState"):
    """Asserts a device state; whoever watches the device is told if that changes it."""

    class Config(Configuration, kw_only=True):
        device_state_id: Id
        new_state_value: Text

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self._device_state_id, self._value = config.device_state_id, config.new_state_value
        self.device_state_ids = frozenset({config.device_state_id})

    def apply(self, run: Run) -> bool | None:
        run.effects.append(StateAssertion(self._device_state_id, self._value, run.chain.id, run.reading, run.at_ms))
        return True


class SendNotification(SetDeviceState, kind="sendNotification"):
    """Asserts a device state, and whoever watches the device is told if that changes it; or tells them a message."""

    class Config(Configuration, kw_only=True):
        device_state_id: Id = 0
        new_state_value: Text = ""
        message: Text = ""

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self._message = config.message
        if config.message:
            self.device_state_ids = frozenset()
        elif not config.device_state_id:
            raise InvalidConfig([("deviceStateId", "required")])
        elif not config.new_state_value:
            raise InvalidConfig([("newStateValue", "required")])

    def apply(self, run: Run) -> bool | None:
        if not self._message:
            return super().apply(run)
        if run.reading is None:
            raise NodeFailed("without a reading there is no device to tell about")
        run.effects.append(Notice(run.key(self.name), filled(self._message, run), run.reading, run.mark[0]))
        return True


class SaveReading(Action, kind="saveReading"):
    """Saves a derived reading of the same sensor or another one; chains that judge that sensor see it."""

    class Config(Configuration, kw_only=True):
        variable_name: Text
        value: Cel
        sensor_uuid: Text = msgspec.field(name="sensorUUID", default="")

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self._variable, self._sensor_uuid = config.variable_name, config.sensor_uuid
        self._value = by_type("value", config.value, VARIABLE_TYPES, is_condition=False)
        self.needs = self._value.words & FETCHED
        self.other_sensor_uuids = frozenset({config.sensor_uuid} - {""}) | self._value.named_sensors

    def apply(self, run: Run) -> bool | None:
        reading = run.reading
        sensor_uuid = self._sensor_uuid or (reading.sensor_uuid if reading else "")
        if not sensor_uuid:
            raise NodeFailed("without a reading the sensor must be named")
        expression = self._value.of("json" if reading is None else reading.variable_type)
        if expression is None:
            raise NodeFailed("'value' makes no sense for this reading")
        value = json.dumps(expression.result(None if reading is None else reading.value, run), allow_nan=False)
        key, at = run.key(self.name), run.mark[0]
        derived = DerivedReading(
            key, run.chain.organization_id, sensor_uuid, self._variable, value, at, run.deeper(), reading
        )
        run.effects.append(derived)
        return True


class Delay(Action, kind="delay"):
    """Lets the run go on after so long, in the time of events: what follows stands at that later time. With `restart`
    a new reading of the variable begins the time anew, and only the last one goes on."""

    class Config(Configuration, kw_only=True):
        seconds: Seconds
        restart: bool = False

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self._ms, self._restart = int(config.seconds * 1000), config.restart

    def apply(self, run: Run) -> bool | None:
        at, reading_id = run.mark
        if run.deadline_ms:
            run.at_ms = at + self._ms
            return True
        run.arm(self.name, self._ms, "" if self._restart else f"{at}:{reading_id}")
        return None


class RunChain(Action, kind="runChain"):
    """Runs another chain of the organization over the same reading, with the data so far."""

    class Config(Configuration, kw_only=True):
        rule_chain_id: Id

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place)
        self.rule_chain_ids = frozenset({config.rule_chain_id})

    def apply(self, run: Run) -> bool | None:
        for chain_id in self.rule_chain_ids:
            cell = Cell(run.world.partition, chain_id, "", uuid5(NAMESPACE_OID, run.key(self.name)).hex)
            run.effects.append(Deadline(cell, run.world.now_ms, run.reading, run.data, run.at_ms, run.deeper()))
        return True
