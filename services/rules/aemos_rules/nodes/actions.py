"""Actions: each says what follows; whoever applies its effect carries it out, once."""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal, TypeAlias
from uuid import NAMESPACE_OID, uuid5

import msgspec
from msgspec import Meta

from ..alarms import CLEARED, SEVERITIES, AlarmAssertion
from ..domain import DerivedReading, InvalidChain, NodeFailed, Notice, StateAssertion
from ..run import Cell, Deadline, Run
from .registry import Action, Cel, Id, Seconds, Text, VariableName, VariableTypes
from .remembering import Memory

AlarmType: TypeAlias = Annotated[
    str, Meta(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_.-]+$", description="1 to 100 of A-Z a-z 0-9 _ . -")
]
Severity: TypeAlias = Annotated[
    Literal["critical", "major", "minor", "warning", "info"], Meta(description=f"one of {', '.join(SEVERITIES)}")
]
StateValue: TypeAlias = Annotated[
    str, Meta(min_length=1, max_length=200, pattern=r"\S", description="a text of 1 to 200 characters")
]
Message: TypeAlias = Annotated[str, Meta(max_length=500, description="a text of at most 500 characters")]
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def filled(text: str, run: Run) -> str:
    """The text with `{value}`, and `{name}` of the run's data, replaced; other braces stay."""
    known = run.data if run.reading is None else {"value": run.reading.value, **run.data}
    return _PLACEHOLDER.sub(lambda found: str(known.get(found[1], found[0])), text)


class SetDeviceState(Action, kind="setDeviceState"):
    """Asserts a device state; whoever watches the device is told if that changes it."""

    device_state_id: Id
    new_state_value: StateValue

    def compile(self, types: VariableTypes) -> None:
        self.device_state_ids = frozenset({self.device_state_id})

    def apply(self, run: Run) -> bool | None:
        assertion = StateAssertion(self.device_state_id, self.new_state_value, run.chain.id, run.reading, run.at_ms)
        run.effects.append(assertion)
        return True


class SendNotification(SetDeviceState, kind="sendNotification"):
    """Asserts a device state, and whoever watches the device is told if that changes it; or tells them a message."""

    device_state_id: Id = 0
    new_state_value: StateValue = ""
    message: Text = ""

    def compile(self, types: VariableTypes) -> None:
        if self.message:
            return
        if not self.device_state_id:
            raise InvalidChain([("deviceStateId", "required")])
        if not self.new_state_value:
            raise InvalidChain([("newStateValue", "required")])
        self.device_state_ids = frozenset({self.device_state_id})

    def apply(self, run: Run) -> bool | None:
        if not self.message:
            return SetDeviceState.apply(self, run)
        if run.reading is None:
            raise NodeFailed("without a reading there is no device to tell about")
        run.effects.append(Notice(run.key(self.name), filled(self.message, run), run.reading, run.mark[0]))
        return True


class SaveReading(Action, kind="saveReading"):
    """Saves a derived reading of the same sensor or another one; chains that judge that sensor see it."""

    variable_name: VariableName
    value: Cel
    sensor_uuid: Text = msgspec.field(name="sensorUUID", default="")

    def compile(self, types: VariableTypes) -> None:
        self.other_sensor_uuids = frozenset({self.sensor_uuid} - {""})
        self._value = self.expression("value", self.value, is_condition=False)

    def apply(self, run: Run) -> bool | None:
        reading = run.reading
        sensor_uuid = self.sensor_uuid or (reading.sensor_uuid if reading else "")
        if not sensor_uuid:
            raise NodeFailed("without a reading the sensor must be named")
        expression = self._value.on(run)
        if expression is None:
            raise NodeFailed("'value' makes no sense for this reading")
        value = json.dumps(expression.result(run), allow_nan=False)
        key, at = run.key(self.name), run.mark[0]
        derived = DerivedReading(
            key, run.chain.organization_id, sensor_uuid, self.variable_name, value, at, run.deeper(), reading
        )
        run.effects.append(derived)
        return True


class Delay(Action, kind="delay"):
    """Lets the run go on after so long, in the time of events: what follows stands at that later time. With `restart`
    a new reading of the variable begins the time anew, and only the last one goes on."""

    seconds: Seconds
    restart: bool = False

    class Memory(Memory, tag="delay"):
        due: int = 0

    def compile(self, types: VariableTypes) -> None:
        self.remembers = self.restart
        self._ms = int(self.seconds * 1000)

    def apply(self, run: Run) -> bool | None:
        at, reading_id = run.mark
        if self.restart and run.reading is not None:
            return self._restart(run)
        if run.deadline_ms:
            run.at_ms = at + self._ms
            return True
        run.arm(self.name, self._ms, "" if self.restart else f"{at}:{reading_id}")
        return None

    def _restart(self, run: Run) -> bool | None:
        """Late readings do not begin it anew, and only the deadline that is awaited lets the run go on."""
        known = run.recall(self.name, self.Memory)
        memory = known or self.Memory()
        at, reading_id = run.mark
        if run.deadline_ms:
            if known and run.deadline_ms != memory.due:  # one that nothing is known of began before it restarted
                return None
            memory.due, run.at_ms = 0, at + self._ms
            run.remember(self.name, memory)
            return True
        if (at, reading_id) > (memory.at, memory.id):
            memory.at, memory.id, memory.due = at, reading_id, run.arm(self.name, self._ms)
            run.remember(self.name, memory)
        return None


class RunChain(Action, kind="runChain"):
    """Runs another chain of the organization over the same reading, with the data so far."""

    rule_chain_id: Id

    def compile(self, types: VariableTypes) -> None:
        self.rule_chain_ids = frozenset({self.rule_chain_id})

    def apply(self, run: Run) -> bool | None:
        cell = Cell(run.world.partition, self.rule_chain_id, "", uuid5(NAMESPACE_OID, run.key(self.name)).hex)
        run.effects.append(Deadline(cell, run.world.now_ms, run.reading, run.data, run.at_ms, run.deeper()))
        return True


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
