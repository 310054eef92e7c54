"""Use cases of history: readings of an organization by page, aggregated, and the latest with what surrounds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aemos_core.database import Database
from aemos_core.errors import invalid, not_found
from aemos_core.paging import Page

from aemos_ingest import history_store as store
from aemos_ingest import registry_store
from aemos_ingest.history_store import Cut
from aemos_ingest.intervals import LATEST_MS, MOST, Span, spans
from aemos_ingest.latest import LatestReadings, Newest
from aemos_ingest.registry_store import AnyRow

MOST_NAMED = 1_000
_MOST_MERGED = 100


@dataclass(frozen=True, slots=True)
class Of:
    """Variables of an organization's sensors; no names are all names."""

    organization_id: int
    sensor_uuids: Sequence[str]
    variable_names: Sequence[str]


@dataclass(frozen=True, slots=True)
class Aggregation:
    """What to compute ("min", ..., "last") of which intervals."""

    wanted: Sequence[str]
    interval: str
    timezone: str


@dataclass(frozen=True, slots=True)
class Series:
    """Aggregates of one variable: intervals, and (count, what is wanted) of those that have readings, by start."""

    variable: AnyRow
    spans: Sequence[Span]
    wanted: Sequence[str]
    values: Mapping[int, Sequence[Any]]

    def intervals(self) -> Iterator[tuple[int, int, Sequence[Any]]]:
        """Start, end and values of every interval; no values in a gap."""
        for span in self.spans:
            for start in span.starts():
                yield start, start + span.width_ms, self.values.get(start, ())


@dataclass(frozen=True, slots=True)
class Around:
    """Devices of an organization by id or uuid, and those of sensors; where none is named, all or those of a label."""

    organization_id: int
    devices: Sequence[str] = ()
    sensor_uuids: Sequence[str] = ()
    label: str = ""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Devices, their sensors, the variables of these in order of sensor and name, and the latest by variable id."""

    devices: Sequence[AnyRow]
    sensors: Sequence[AnyRow]
    variables: Sequence[AnyRow]
    latest: Mapping[int, Newest]
    next_page_token: str


class History:
    """What was sent. Every query is inside one organization; what belongs to another is NOT_FOUND."""

    def __init__(self, database: Database, latest: LatestReadings) -> None:
        self._database = database
        self._latest = latest

    async def readings(self, of: Of, cut: Cut) -> tuple[Sequence[AnyRow], Mapping[int, AnyRow]]:
        """At most `cut.limit` readings, and their variables by id."""
        variables = await self._variables(of)
        if len(variables) > _MOST_MERGED:
            raise invalid("sensorUuid", f"names more than {_MOST_MERGED} variables", "too_many_variables")
        by_id = {variable.id: variable for variable in variables}
        return await store.page(self._database, list(by_id), cut) if by_id else (), by_id

    async def aggregates(self, of: Of, bounds: tuple[int, int], how: Aggregation) -> list[Series]:
        """A series for each variable; its intervals cover [bounds) without a hole."""
        if unknown := [name for name in how.wanted if name not in store.AGGREGATES]:
            raise invalid("aggregate", f"{unknown[0][:20]!r} is none of {', '.join(store.AGGREGATES)}")
        variables = await self._variables(of)
        bounds = max(bounds[0], 0), min(bounds[1], LATEST_MS)
        found = spans(how.interval, how.timezone, *bounds, MOST // max(len(variables), 1))
        values: dict[int, dict[int, Sequence[Any]]] = {variable.id: {} for variable in variables}
        for span in found if variables else ():
            rows = await store.aggregates(self._database, list(values), span, bounds, how.wanted)
            for variable_id, start, *row in rows:
                values[variable_id][start] = row
        wanted = [name for name in store.AGGREGATES if name in how.wanted and name != "count"]
        return [Series(variable, found, wanted, values[variable.id]) for variable in variables]

    async def latest(self, of: Of) -> list[tuple[Newest, AnyRow]]:
        """The newest reading of each variable that has one, with its variable."""
        variables = await self._variables(of)
        newest = await self._latest.get([variable.id for variable in variables])
        return [(newest[variable.id], variable) for variable in variables if variable.id in newest]

    async def surroundings(self, around: Around, page: Page) -> Surroundings:
        """Devices with their sensors and what these said last."""
        named = around.devices, around.sensor_uuids
        for loc, references in zip(("devices", "sensorUuids"), named, strict=True):
            if len(references) > MOST_NAMED:
                raise invalid(loc, f"must be at most {MOST_NAMED}")
        organization_id = around.organization_id
        async with self._database.read() as connection:
            if any(named):
                if around.label:
                    raise invalid("label", "must not stand beside devices or sensors")
                rows, token = await store.named_devices(connection, organization_id, *named), ""
            else:
                listed = await registry_store.list_devices(
                    connection, organization_id, page.after, page.limit, around.label
                )
                rows, token = page.cut(listed)
            sensors = await store.sensors_of(connection, [row.id for row in rows])
        uuids = [sensor.uuid for sensor in sensors]
        found = await store.variables_of(self._database, organization_id, uuids, ())
        variables = [variable for variable in found if variable.id is not None]
        latest = await self._latest.get([variable.id for variable in variables])
        return Surroundings(rows, sensors, variables, latest, token)

    async def _variables(self, of: Of) -> list[AnyRow]:
        """Those that exist; NOT_FOUND when a sensor does not, or a name is no sensor's."""
        for loc, named, least in (("sensorUuid", of.sensor_uuids, 1), ("variableName", of.variable_names, 0)):
            if not least <= len(named) <= MOST_NAMED or "" in named:
                raise invalid(loc, f"must be given, at most {MOST_NAMED} times" if least else "must not be empty")
        rows = await store.variables_of(self._database, of.organization_id, of.sensor_uuids, of.variable_names)
        if {row.sensor_uuid for row in rows} != set(of.sensor_uuids):
            raise not_found("sensor")
        if not {row.variable_name for row in rows} >= set(of.variable_names):
            raise not_found("telemetry data")
        return [row for row in rows if row.id is not None]
