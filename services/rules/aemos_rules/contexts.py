"""What chains ask to know beyond their readings: fetched once for a job, and only for chains that name it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aemos.v1 import data_stream_pb2, history_pb2, history_pb2_grpc
from aemos_core.database import Database
from google.protobuf import json_format
from sqlalchemy import select

from aemos_rules import tables as t
from aemos_rules.domain import Reading
from aemos_rules.engine import CompiledChain
from aemos_rules.run import NOTHING_KNOWN, Cell, Context

_MOST_NAMED = 100
"""Devices in one call: their attributes may have 16 KiB each, and an answer 4 MiB."""
_MOST_KEPT = 50_000


class Asked:
    """What the chains of one job ask for."""

    def __init__(self) -> None:
        self.cells: set[Cell] = set()
        self.devices: dict[int, set[str]] = {}
        self.sensors: dict[int, set[str]] = {}
        self.needs: set[str] = set()

    def add(self, partition: int, chain: CompiledChain, origin: Reading | None) -> None:
        """What one chain asks for one reading."""
        if origin is None:
            return
        for node in chain.remembering:
            self.cells.add(Cell(partition, chain.chain.id, node, str(origin.telemetry_data_id)))
        if chain.needs:
            self.needs |= chain.needs
            self.devices.setdefault(origin.organization_id, set()).add(origin.device_uuid)
            self.sensors.setdefault(origin.organization_id, set()).update(chain.other_sensor_uuids)


class Contexts:
    """Asks ingest, and the states' table. Devices are kept until the registry changes; latest values never are."""

    def __init__(self, database: Database, history: history_pb2_grpc.HistoryServiceAsyncStub) -> None:
        self._database = database
        self._history = history
        self._kept: dict[str, _DeviceContext] = {}

    def forget(self, _: bytes = b"") -> None:
        """The registry changed, or we may have missed that it did. What is under way goes on with what it knows."""
        self._kept = {}

    async def fetch(self, asked: Asked) -> Context:
        """The context of a job. AemosError when ingest does not answer."""
        if not asked.needs:
            return NOTHING_KNOWN
        if len(self._kept) > _MOST_KEPT:
            self.forget()
        found = _Fetched(self._kept)
        for organization_id, devices in asked.devices.items():
            sensors = asked.sensors[organization_id] if "sensors" in asked.needs else set()
            missing = [uuid for uuid in devices if "sensors" in asked.needs or uuid not in found.devices]
            if asked.needs != {"states"} and (missing or sensors):
                for page in _pages(sorted(missing), sorted(sensors)):
                    found.keep(await self._ask(organization_id, *page))
        if "states" in asked.needs:
            found.states = await self._states(asked)
        return found

    async def newest(self, readings: Iterable[Reading]) -> dict[int, tuple[int, int]]:
        """Of the sensors of these readings, by variable's id: (ms, reading id) of the newest reading that is stored."""
        sensors: dict[int, set[str]] = {}
        for reading in readings:
            sensors.setdefault(reading.organization_id, set()).add(reading.sensor_uuid)
        found = {}
        for organization_id, uuids in sensors.items():
            for page in _pages([], sorted(uuids)):
                for context in (await self._ask(organization_id, *page)).sensors:
                    for one in context.latest.values():
                        found[one.telemetry_data_id] = (one.recieved_at.ToMilliseconds(), one.id)
        return found

    async def _ask(
        self, organization_id: int, devices: Sequence[str], sensors: Sequence[str]
    ) -> history_pb2.GetContextResponse:
        request = history_pb2.GetContextRequest(
            organization_id=organization_id, devices=devices, sensor_uuids=sensors, page_size=_MOST_NAMED
        )
        return await self._history.GetContext(request)

    async def _states(self, asked: Asked) -> dict[str, dict[str, str]]:
        state = t.device_state.c
        uuids = sorted(set().union(*asked.devices.values()))
        query = select(state.device_uuid, state.name, state.value).where(state.device_uuid.in_(uuids))
        found: dict[str, dict[str, str]] = {}
        async with self._database.read() as connection:
            for row in (await connection.execute(query)).all():
                found.setdefault(row.device_uuid, {})[row.name] = row.value
        return found


@dataclass
class _DeviceContext:
    """A device, its sensors by uuid, and their latest values by uuid and by name."""

    device: Mapping[str, Any]
    sensors: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    latest: dict[str, Mapping[str, Any]] = field(default_factory=dict)


class _Fetched(Context):
    """The context of one job: devices that are kept, latest values of sensors by their uuid, and states."""

    def __init__(self, devices: dict[str, _DeviceContext]) -> None:
        self.devices = devices
        self.named: dict[str, Mapping[str, Any]] = {}
        self.states: dict[str, dict[str, str]] = {}

    def keep(self, answer: history_pb2.GetContextResponse) -> None:
        """Takes what ingest answered."""
        for device in answer.devices:
            known = {"id": device.id, "uuid": device.uuid, "name": device.name, "labels": dict(device.labels)}
            attributes = json_format.MessageToDict(device.attributes)
            self.devices[device.uuid] = _DeviceContext({**known, "attributes": attributes})
        for context in answer.sensors:
            sensor, latest = context.sensor, {name: _value(one) for name, one in context.latest.items()}
            self.named[sensor.uuid] = latest
            if of := self.devices.get(sensor.device_uuid):
                of.sensors[sensor.uuid] = {"uuid": sensor.uuid, "name": sensor.name}
                of.latest[sensor.uuid] = of.latest[sensor.name] = latest

    def word(self, word: str, reading: Reading | None) -> Any:
        of = None if reading is None else self.devices.get(reading.device_uuid)
        if word == "sensors":
            return {**self.named, **(of.latest if of else {})}
        if reading is None:
            return {}
        if word == "states":
            return self.states.get(reading.device_uuid, {})
        if of is None:
            return {}
        return of.device if word == "device" else of.sensors.get(reading.sensor_uuid, {})


def _pages(devices: Sequence[str], sensors: Sequence[str]) -> Iterable[tuple[Sequence[str], Sequence[str]]]:
    for start in range(0, max(len(devices), len(sensors)), _MOST_NAMED):
        yield devices[start : start + _MOST_NAMED], sensors[start : start + _MOST_NAMED]


def _value(reading: data_stream_pb2.Reading) -> Any:
    """The value behind its text: a number, true or false, JSON, or the text itself."""
    try:
        return json.loads(reading.value, parse_constant=str)
    except ValueError:
        return reading.value
