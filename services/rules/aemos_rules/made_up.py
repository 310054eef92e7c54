"""Readings that users name to try a chain with: made up, or stored ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from aemos.v1 import chain_run_pb2, data_stream_pb2, history_pb2, history_pb2_grpc, sensor_pb2, sensor_pb2_grpc
from aemos_core.errors import invalid, not_found
from aemos_core.identity import caller
from aemos_core.times import now_ms
from google.protobuf import json_format

from aemos_rules.domain import Reading


class MadeUpReadings:
    """Of sensors of the caller's organization. One without a value is the stored one, at its time or the newest."""

    def __init__(
        self, sensors: sensor_pb2_grpc.SensorServiceAsyncStub, history: history_pb2_grpc.HistoryServiceAsyncStub
    ) -> None:
        self._sensors = sensors
        self._history = history

    async def judged(self, wanted: Sequence[chain_run_pb2.MadeUpReading]) -> list[Reading]:
        """With the ids of what they name; INVALID for a sensor or variable that the organization has not."""
        if not all(one.sensor_uuid and one.variable_name for one in wanted):
            raise invalid("reading", "needs sensorUuid and variableName")
        organization_id, uuids = caller().organization_id, sorted({one.sensor_uuid for one in wanted})
        if not uuids:
            return []
        known = await self._sensors.DescribeSensors(
            sensor_pb2.DescribeSensorsRequest(organization_id=organization_id, sensor_uuids=uuids)
        )
        types = {one.sensor_uuid: dict(one.variable_types) for one in known.sensors}
        request = history_pb2.GetContextRequest(organization_id=organization_id, sensor_uuids=uuids)
        contexts = {one.sensor.uuid: one for one in (await self._history.GetContext(request)).sensors}
        readings = []
        for index, one in enumerate(wanted):
            kind = types.get(one.sensor_uuid, {}).get(one.variable_name)
            if kind is None or one.sensor_uuid not in contexts:
                raise invalid(f"readings.{index}", "no such sensor or variable")
            readings.append(await self._reading(index, one, kind, contexts[one.sensor_uuid]))
        return readings

    async def _reading(
        self, index: int, one: chain_run_pb2.MadeUpReading, kind: str, of: history_pb2.SensorContext
    ) -> Reading:
        latest = of.latest.get(one.variable_name)
        value: Any = json_format.MessageToDict(one.value) if one.HasField("value") else None
        at_ms, reading_id = one.recieved_at.ToMilliseconds(), index + 1
        if value is None:
            stored = await self._stored(one, at_ms) if at_ms else latest
            if stored is None:
                raise not_found("reading")
            at_ms, value, reading_id = stored.recieved_at.ToMilliseconds(), stored.value, stored.id
        return Reading(
            reading_id,
            caller().organization_id,
            of.sensor.device_id,
            of.sensor.device_uuid,
            of.sensor.id,
            of.sensor.uuid,
            latest.telemetry_data_id if latest else 0,
            one.variable_name,
            kind,  # type: ignore[arg-type]
            _typed(value, kind),
            at_ms or now_ms(),
            b"",
        )

    async def _stored(self, one: chain_run_pb2.MadeUpReading, at_ms: int) -> data_stream_pb2.Reading | None:
        query = data_stream_pb2.QueryReadingsRequest(
            sensor_uuid=[one.sensor_uuid], variable_name=[one.variable_name], page_size=1
        )
        getattr(query, "from").FromMilliseconds(at_ms)
        query.to.FromMilliseconds(at_ms + 1)
        request = history_pb2.QueryHistoryRequest(organization_id=caller().organization_id, query=query)
        found = (await self._history.QueryHistory(request)).readings
        return found[0] if found else None


def _typed(value: Any, kind: str) -> Any:
    """As the judge has it: a number, a text, true or false, or JSON."""
    try:
        if kind == "number":
            return float(value)
        if kind == "boolean":
            return value if isinstance(value, bool) else {"true": True, "false": False}[str(value)]
        if kind == "json":
            return json.loads(value) if isinstance(value, str) else value
    except (TypeError, ValueError, KeyError):
        raise invalid("value", f"the variable is {kind}", "wrong_type") from None
    return str(value)
