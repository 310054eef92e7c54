"""What sensors measured, for chains and reports that look further than one reading: read from ingest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from math import isfinite
from typing import Any

from aemos.v1 import data_stream_pb2, history_pb2, history_pb2_grpc
from aemos_core.errors import AemosError, Kind
from aemos_core.times import to_timestamp

from aemos_rules.domain import Question, Selection
from aemos_rules.report import Bucket, Series, joined, period

MOST_SERIES = 200
"""Variables that one report or chain looks at."""
_PAGE = 100
_VARIABLES_AT_ONCE = 50
"""ingest answers at most 10,000 intervals a call, and a variable has up to a hundred."""


class SensorSource:
    """ingest, over gRPC; AemosError when it does not answer."""

    def __init__(self, history: history_pb2_grpc.HistoryServiceAsyncStub) -> None:
        self._history = history

    async def series(
        self, organization_id: int, about: Selection, begin: int, end: int, bucket_ms: int
    ) -> Sequence[Series]:
        """What number variables measured in [begin, end), ms, in order of sensor and name; at most MOST_SERIES.

        By parts of `bucket_ms`; 0: the whole as one.
        """
        sensors = {context.sensor.uuid: context async for context in self._sensors(organization_id, about)}
        found: list[Series] = []
        for few in _batches(list(sensors.values())):
            query = data_stream_pb2.QueryReadingsRequest(
                sensor_uuid=[context.sensor.uuid for context in few],
                variable_name=about.variable_names,
                to=to_timestamp(end),
                aggregate=["min", "max", "avg"],
                interval=f"{bucket_ms // 1000}s" if bucket_ms else "",
            )
            getattr(query, "from").CopyFrom(to_timestamp(begin))
            request = history_pb2.QueryHistoryRequest(organization_id=organization_id, query=query)
            try:
                answer = await self._history.QueryHistory(request)
            except AemosError as error:
                if error.kind is Kind.NOT_FOUND:  # none of them has a variable of these names
                    continue
                raise
            found += [s for one in answer.aggregates if (s := _series(one, sensors[one.sensor_uuid])) is not None]
            if len(found) >= MOST_SERIES:
                break
        return found[:MOST_SERIES]

    async def answer(self, organization_id: int, question: Question, at_ms: int, timezone: str) -> dict[str, Any]:
        """`count`, `min`, `avg`, `max` over all, and `values` by sensor uuid and variable; see docs/reports.md."""
        if question.period:
            begin, end = period(question.period, at_ms, timezone)
            measured = await self.series(organization_id, question.about, begin, end, 0)
        else:
            measured = [one async for one in self._latest(organization_id, question.about)]
        return summary(measured)

    async def _latest(self, organization_id: int, about: Selection) -> AsyncIterator[Series]:
        async for context in self._sensors(organization_id, about):
            for name, reading in sorted(context.latest.items()):
                value = number(reading.value)
                if value is not None and (not about.variable_names or name in about.variable_names):
                    bucket = Bucket(reading.recieved_at.ToMilliseconds(), 1, value, value, value)
                    sensor = context.sensor
                    yield Series(sensor.device_uuid, sensor.uuid, sensor.name, name, [bucket])

    async def _sensors(self, organization_id: int, about: Selection) -> AsyncIterator[history_pb2.SensorContext]:
        request = history_pb2.GetContextRequest(organization_id=organization_id, page_size=_PAGE)
        if not about.label:
            request.devices.extend(about.device_uuids)
            request.sensor_uuids.extend(about.sensor_uuids)
        key, _, value = about.label.partition("=")
        is_all = not (key or request.devices or request.sensor_uuids)
        while True:
            page = await self._history.GetContext(request)
            devices = {*about.device_uuids, *(d.uuid for d in page.devices if key and d.labels.get(key) == value)}
            for context in page.sensors:
                sensor = context.sensor
                if is_all or sensor.device_uuid in devices or sensor.uuid in about.sensor_uuids:
                    yield context
            request.page_token = page.next_page_token
            if not request.page_token:
                return


def summary(measured: Iterable[Series]) -> dict[str, Any]:
    """Figures over all that was measured, as a chain's data."""
    values: dict[str, dict[str, float]] = {}
    buckets: list[Bucket] = []
    for series in measured:
        buckets += series.buckets
        for bucket in series.buckets:
            values.setdefault(series.sensor_uuid, {})[series.variable] = bucket.average
    whole = joined(buckets)
    if whole is None:
        return {"count": 0, "values": {}}
    figures = {"count": whole.count, "min": whole.minimum, "avg": whole.average, "max": whole.maximum}
    return figures | {"values": values}


def number(text: str) -> float | None:
    """The value of a reading that is one; a reading's own text has no other numbers than JSON's."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def _batches(sensors: Sequence[history_pb2.SensorContext]) -> Iterator[list[history_pb2.SensorContext]]:
    batch: list[history_pb2.SensorContext] = []
    count = 0
    for context in sensors:
        batch.append(context)
        count += max(1, len(context.latest))
        if count >= _VARIABLES_AT_ONCE:
            yield batch
            batch, count = [], 0
    if batch:
        yield batch


def _series(found: data_stream_pb2.AggregateSeries, context: history_pb2.SensorContext) -> Series | None:
    """None for a variable that is no number."""
    filled = [interval for interval in found.intervals if interval.count]
    if any(not interval.HasField("avg") for interval in filled):
        return None
    buckets = [
        Bucket(getattr(i, "from").ToMilliseconds(), i.count, i.min, i.avg, i.max)  # a word of Python
        for i in filled
    ]
    sensor = context.sensor
    return Series(sensor.device_uuid, sensor.uuid, sensor.name, found.variable_name, buckets)
