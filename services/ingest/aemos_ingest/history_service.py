"""Use cases of history: readings of an organization by page, aggregated, and the latest with what surrounds them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from aemos.v1 import data_stream_pb2 as pb
from aemos.v1 import history_pb2, history_pb2_grpc
from aemos_core.database import Database
from aemos_core.errors import invalid, not_found
from aemos_core.identity import caller
from aemos_core.paging import page_of
from aemos_core.rpc import MAX_MESSAGE_BYTES, Context
from aemos_core.times import now_ms, to_timestamp
from google.protobuf.message import Message

from aemos_ingest import codec, registry_store
from aemos_ingest import history_store as store
from aemos_ingest import tables as t
from aemos_ingest.history_store import END_OF_TIME, Cut
from aemos_ingest.intervals import LATEST_MS, MOST, Span, spans
from aemos_ingest.latest import LatestReadings
from aemos_ingest.registry_store import DEVICE, SENSOR, AnyRow

MOST_NAMED = 1_000
_MOST_MERGED = 100
_MOST_TEXT = 700_000
"""Characters of a page's values, each up to 4 bytes: a message has at most 4 MiB."""
M = TypeVar("M", bound=Message)
Asked = pb.QueryReadingsRequest | history_pb2.GetLatestReadingsRequest


class History(history_pb2_grpc.HistoryServiceServicer):
    """What was sent, and its servicer. Every query is inside one organization; what belongs to another is NOT_FOUND.

    Aggregates read any number of readings, on connections of their own (`aggregating`)."""

    def __init__(self, database: Database, aggregating: Database, latest: LatestReadings) -> None:
        self._database = database
        self._aggregating = aggregating
        self._latest = latest

    async def query(self, organization_id: int, request: pb.QueryReadingsRequest) -> pb.QueryReadingsResponse:
        """A page of readings, or aggregates: a series for each variable, whose intervals have no hole between them."""
        if request.aggregate:
            return await self._aggregates(organization_id, request)
        cut = _cut(request)
        variables = await self._variables(organization_id, request, _MOST_MERGED)
        by_id = {variable.id: variable for variable in variables}
        return _page(await store.page(self._database, list(by_id), cut) if by_id else (), by_id, cut.limit)

    async def QueryHistory(
        self, request: history_pb2.QueryHistoryRequest, context: Context
    ) -> pb.QueryReadingsResponse:
        """As `query`, for a service that acts for an organization."""
        return await self.query(request.organization_id, request.query)

    async def GetLatestReadings(
        self, request: history_pb2.GetLatestReadingsRequest, context: Context
    ) -> history_pb2.GetLatestReadingsResponse:
        """The newest reading of each variable that has one."""
        variables = await self._variables(caller().organization_id, request)
        newest = await self._latest.get([variable.id for variable in variables])
        readings = [codec.reading(newest[v.id], v) for v in variables if v.id in newest]
        return _fitting(history_pb2.GetLatestReadingsResponse(readings=readings))

    async def GetContext(
        self, request: history_pb2.GetContextRequest, context: Context
    ) -> history_pb2.GetContextResponse:
        """Devices that are named or whose sensors are, else all or those of a label; their sensors with the latest."""
        page, named = page_of(request), (request.devices, request.sensor_uuids)
        for loc, references in zip(("devices", "sensorUuids"), named, strict=True):
            if len(references) > MOST_NAMED:
                raise invalid(loc, f"must be at most {MOST_NAMED}")
        if any(named) and request.label:
            raise invalid("label", "must not stand beside devices or sensors")
        of, token = request.organization_id, ""
        async with self._database.read() as connection:
            if any(named):
                devices = await registry_store.devices_of(connection, of, *named)
            else:
                devices, token = await registry_store.listed(connection, DEVICE, of, page, label=request.label)
            of_devices = t.sensor.c.device_id.in_([device.id for device in devices])
            sensors = await registry_store.entries(connection, SENSOR, of_devices)
            found = await registry_store.variables_of(connection, of_devices)
        variables = [variable for variable in found if variable.id is not None]
        newest = await self._latest.get([variable.id for variable in variables])
        contexts = {row.uuid: history_pb2.SensorContext(sensor=codec.sensor(row)) for row in sensors}
        for variable in variables:
            if variable.id in newest:
                reading = codec.reading(newest[variable.id], variable)
                contexts[variable.sensor_uuid].latest[variable.variable_name].CopyFrom(reading)
        listed = map(codec.device, devices)
        answer = history_pb2.GetContextResponse(devices=listed, sensors=contexts.values(), next_page_token=token)
        return _fitting(answer)

    async def _aggregates(self, organization_id: int, request: pb.QueryReadingsRequest) -> pb.QueryReadingsResponse:
        given, asked = _bounds(request), request.aggregate
        if unknown := [name for name in asked if name not in store.AGGREGATES]:
            raise invalid("aggregate", f"{unknown[0][:20]!r} is none of {', '.join(store.AGGREGATES)}")
        variables = await self._variables(organization_id, request, MOST)
        bounds = max(given[0], 0), min(given[1], LATEST_MS)
        found = spans(request.interval, request.timezone, *bounds, MOST // max(len(variables), 1))
        values: dict[int, dict[int, Sequence[Any]]] = {variable.id: {} for variable in variables}
        for span in found if variables else ():
            rows = await store.aggregates(self._aggregating, list(values), span, bounds, asked)
            for variable_id, start, *row in rows:
                values[variable_id][start] = row
        wanted = ("count", *(name for name in store.AGGREGATES if name in asked and name != "count"))
        series = [_series(variable, found, wanted, values[variable.id]) for variable in variables]
        return _fitting(pb.QueryReadingsResponse(aggregates=series))

    async def _variables(self, organization_id: int, asked: Asked, most: float = math.inf) -> list[AnyRow]:
        """Those that exist, at most so many; NOT_FOUND when a sensor does not, or a name is no sensor's."""
        sensors, names = asked.sensor_uuid, asked.variable_name
        for loc, named, least in (("sensorUuid", sensors, 1), ("variableName", names, 0)):
            if not least <= len(named) <= MOST_NAMED or "" in named:
                raise invalid(loc, f"must be given, at most {MOST_NAMED} times" if least else "must not be empty")
        where = t.sensor.c.organization_id == organization_id, t.sensor.c.uuid.in_(sensors)
        async with self._database.read() as connection:
            rows = await registry_store.variables_of(connection, *where, names=names)
        if {row.sensor_uuid for row in rows} != set(sensors):
            raise not_found("sensor")
        if not {row.variable_name for row in rows} >= set(names):
            raise not_found("telemetry data")
        found = [row for row in rows if row.id is not None]
        if len(found) > most:
            raise invalid("sensorUuid", f"names more than {most} variables", "too_many_variables")
        return found


def _fitting(answer: M) -> M:
    """The answer; INVALID when it is larger than a caller takes, which would call that busy and come again."""
    if answer.ByteSize() > MAX_MESSAGE_BYTES:
        raise invalid("sensorUuid", f"asks for more than {MAX_MESSAGE_BYTES >> 20} MiB", "too_large")
    return answer


def _bounds(request: pb.QueryReadingsRequest) -> tuple[int, int]:
    """The range in milliseconds, exclusive its end."""
    begin, end = codec.time_ms(request, "from"), codec.time_ms(request, "to")
    if request.interval and begin is None:
        raise invalid("from", "is required where an interval is given")
    open_end = now_ms() if request.interval else END_OF_TIME
    return begin or 0, open_end if end is None else end


def _cut(request: pb.QueryReadingsRequest) -> Cut:
    """Which page of readings, and one more; the page token is the last one's time and id in digits."""
    if request.order not in ("", "asc", "desc"):
        raise invalid("order", 'must be "asc" or "desc"')
    if request.interval:
        raise invalid("interval", "needs an aggregate")
    limit = page_of(pb.QueryReadingsRequest(page_size=request.page_size)).limit
    after = None
    if request.page_token:
        match = re.fullmatch(r"([0-9]{1,16})-([0-9]{1,16})", request.page_token)
        if match is None:
            raise invalid("pageToken", "is not one that a list gave")
        after = int(match[1]), int(match[2])
    return Cut(*_bounds(request), limit + 1, request.order == "desc", after)


def _page(rows: Sequence[AnyRow], variables: Mapping[int, AnyRow], limit: int) -> pb.QueryReadingsResponse:
    """A page out of the rows that were read, of which the last of `limit` is the next page's; less of long ones."""
    page: list[AnyRow] = []
    room = _MOST_TEXT
    for row in rows[: limit - 1]:
        page.append(row)
        room -= len(row.value)
        if room < 0:
            break
    token = f"{page[-1].received_at_ms}-{page[-1].id}" if len(page) < len(rows) else ""
    return pb.QueryReadingsResponse(
        readings=[codec.reading(row, variables[row.telemetry_data_id]) for row in page], next_page_token=token
    )


def _series(
    variable: AnyRow, found: Sequence[Span], wanted: Sequence[str], values: Mapping[int, Sequence[Any]]
) -> pb.AggregateSeries:
    """Every interval; of those that have readings what is wanted, from `values` by start."""
    made = pb.AggregateSeries(
        sensor_uuid=variable.sensor_uuid, variable_name=variable.variable_name, telemetry_data_id=variable.id
    )
    add = made.intervals.add  # thousands: what is done for each is what a call costs
    for span in found:
        for start in span.starts():
            given = dict(zip(wanted, values.get(start, ()), strict=False))
            add(**{"from": to_timestamp(start), "to": to_timestamp(start + span.width_ms)}, **given)
    return made
