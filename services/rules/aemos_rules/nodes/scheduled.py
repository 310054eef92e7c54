"""What chains on a schedule do: look at any sensors of their organization, and have reports made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias
from uuid import NAMESPACE_URL, uuid5

import msgspec
from msgspec import Meta

from ..domain import NodeFailed, Question, ReportWanted, Selection
from ..run import Run
from .registry import Action, Cel, Filter, NodeKind, Text, Transform, VariableTypes
from .transforms import Name

Period: TypeAlias = Literal["last-hour", "today", "yesterday", "last-week", "last-month"]
Uuids: TypeAlias = Annotated[tuple[Text, ...], Meta(max_length=1_000, description="at most 1000 uuids")]
Label: TypeAlias = Annotated[str, Meta(pattern=r"^[^=]+=.+$", max_length=200, description='such as "room=cellar"')]
Email: TypeAlias = Annotated[str, Meta(pattern=r"^[^@\s]+@[^@\s]+$", max_length=254, description="an e-mail address")]


class AboutSensors(NodeKind):
    """These sensors, those of these devices, and those of devices with a label; all when none is given."""

    sensor_uuids_: Uuids = msgspec.field(name="sensorUUIDs", default=())
    device_uuids: Uuids = msgspec.field(name="deviceUUIDs", default=())
    label: Label | None = None
    variable_names: Annotated[tuple[Text, ...], Meta(max_length=50, description="at most 50 names")] = ()

    @property
    def about(self) -> Selection:
        """Which variables."""
        return Selection(self.sensor_uuids_, self.device_uuids, self.label or "", self.variable_names)


class ReadSensors(AboutSensors, Transform, kind="readSensors"):
    """Adds what sensors measured in a period, or last: count, min, avg, max, and values by sensor uuid.

    On a schedule only: a chain that judges readings would ask for each of them.
    """

    period: Period | None = None
    result: Name = msgspec.field(name="name", default="sensors")

    def compile(self, types: VariableTypes) -> None:
        self._question = Question(self.about, self.period or "")
        self.questions = frozenset({self._question})

    def apply(self, run: Run) -> bool | None:
        answer = run.world.answers.get(self._question)
        if answer is None:
            raise NodeFailed("sensors are read on a schedule only")
        run.data = {**run.data, self.result: answer}
        return True


class OnData(Filter, kind="data"):
    """True when what earlier nodes found out satisfies the condition: there needs to be no reading."""

    condition: Cel

    def compile(self, types: VariableTypes) -> None:
        self._condition = self.expression("condition", self.condition, ["json"]).first

    def apply(self, run: Run) -> bool | None:
        return self._condition.holds(run)

    def values(self, run: Run) -> Mapping[str, Any]:
        return self._condition.inputs(run)


class GenerateReport(AboutSensors, Action, kind="generateReport"):
    """Has a report made of a period, on a schedule only: it is listed, and sent to those who are named."""

    title: Text
    period: Period
    email_to: Annotated[tuple[Email, ...], Meta(max_length=20, description="at most 20 addresses")] = ()

    def apply(self, run: Run) -> bool | None:
        if run.reading is not None:
            raise NodeFailed("reports are made on a schedule only")
        key, chain = uuid5(NAMESPACE_URL, run.key(self.name)).hex, run.chain
        wanted = (self.title, self.period, self.about, self.email_to)
        run.effects.append(ReportWanted(key, chain.organization_id, chain.id, chain.timezone, run.at_ms, *wanted))
        return True
