"""Requests and answers of history as messages of the contract."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aemos.v1 import data_stream_pb2 as pb
from aemos.v1 import history_pb2
from aemos_core.errors import invalid
from aemos_core.paging import page_of
from aemos_core.times import now_ms, to_timestamp
from google.protobuf.timestamp_pb2 import Timestamp

from aemos_ingest import codec
from aemos_ingest.history_service import Aggregation, Of, Series, Surroundings
from aemos_ingest.history_store import END_OF_TIME, Cut
from aemos_ingest.registry_store import AnyRow

_MOST_TEXT = 700_000
"""Characters of a page's values, each up to 4 bytes: a message has at most 4 MiB."""


def bounds(request: pb.QueryReadingsRequest) -> tuple[int, int]:
    """The range in milliseconds, exclusive its end."""
    begin: Timestamp = getattr(request, "from")
    open_end = now_ms() if request.interval else END_OF_TIME
    if request.interval and not request.HasField("from"):
        raise invalid("from", "is required where an interval is given")
    return begin.ToMilliseconds(), request.to.ToMilliseconds() if request.HasField("to") else open_end


def cut(request: pb.QueryReadingsRequest) -> Cut:
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
    return Cut(*bounds(request), limit + 1, request.order == "desc", after)


def of(organization_id: int, request: pb.QueryReadingsRequest | history_pb2.GetLatestReadingsRequest) -> Of:
    """Whose readings."""
    return Of(organization_id, request.sensor_uuid, request.variable_name)


def aggregation(request: pb.QueryReadingsRequest) -> Aggregation:
    """What to compute."""
    return Aggregation(request.aggregate, request.interval, request.timezone)


def readings(rows: Sequence[AnyRow], variables: Mapping[int, AnyRow], limit: int) -> pb.QueryReadingsResponse:
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


def aggregates(series: Iterable[Series]) -> pb.QueryReadingsResponse:
    """Every interval of every variable."""
    return pb.QueryReadingsResponse(aggregates=map(_series, series))


def _series(series: Series) -> pb.AggregateSeries:
    variable, names = series.variable, ("count", *series.wanted)
    made = pb.AggregateSeries(
        sensor_uuid=variable.sensor_uuid, variable_name=variable.variable_name, telemetry_data_id=variable.id
    )
    add = made.intervals.add  # thousands: what is done for each is what a call costs
    for start, end, values in series.intervals():
        add(**{"from": to_timestamp(start), "to": to_timestamp(end)}, **dict(zip(names, values, strict=False)))
    return made


def latest(found: Iterable[tuple[Any, AnyRow]]) -> history_pb2.GetLatestReadingsResponse:
    """The newest readings."""
    return history_pb2.GetLatestReadingsResponse(readings=[codec.reading(*one) for one in found])


def surroundings(found: Surroundings) -> history_pb2.GetContextResponse:
    """Devices and sensors, each sensor with its latest readings."""
    sensors = {row.uuid: history_pb2.SensorContext(sensor=codec.sensor(row)) for row in found.sensors}
    for variable in found.variables:
        if newest := found.latest.get(variable.id):
            reading = codec.reading(newest, variable)
            sensors[variable.sensor_uuid].latest[variable.variable_name].CopyFrom(reading)
    return history_pb2.GetContextResponse(
        devices=map(codec.device, found.devices), sensors=sensors.values(), next_page_token=found.next_page_token
    )
