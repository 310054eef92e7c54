"""What every token may write to, in memory: the hot path asks no database."""

from __future__ import annotations

import asyncio
import logging
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence, Set

from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind
from aemos_core.times import now_ms
from aemos_core.waiting import wait

from aemos_ingest import registry_store as store
from aemos_ingest import tables as t
from aemos_ingest.domain import Sensor, Source, SourceKey, UnknownVariable, Variable
from aemos_ingest.registry_store import AnyRow

log = logging.getLogger("aemos.ingest")

_POLL_SECONDS = 3.0
_MOST = 200_000
_COLLISIONS = 3


class Sources:
    """A component: sources by key. What another process changed is dropped on a hint, or within 3 s."""

    def __init__(self, database: Database, partitions: int) -> None:
        self._database = database
        self._partitions = partitions
        self._sources: dict[SourceKey, Source] = {}
        self._hint = asyncio.Event()
        self._since_ms = now_ms()

    async def load(self, keys: Set[SourceKey]) -> dict[SourceKey, Source]:
        """The sources of these keys, those from memory that are in it; an invalid token has none."""
        now = now_ms()
        found = {key: known for key in keys if (known := self._sources.get(key)) and known.expires_at_ms > now}
        if len(found) < len(keys):
            found |= await self._read(keys - found.keys())
        return found

    async def _read(self, keys: Set[SourceKey]) -> dict[SourceKey, Source]:
        if len(self._sources) > _MOST:
            self._sources.clear()
        named = [key for key in keys if isinstance(key, tuple)]
        async with self._database.read() as connection:
            tokens = t.device_token.c.id.in_([key for key in keys if isinstance(key, int)])
            rows = list(await store.valid_tokens(connection, tokens))
            rows += await store.owners_of(connection, named) if named else []
            devices = {row.device_id: row for row in rows}
            variables = await store.variables_of(connection, t.sensor.c.device_id.in_(devices))
        sensors = self._sensors(variables, devices)
        read: dict[SourceKey, Source] = {}
        for row in rows:
            of_device = sensors.get(row.device_id, {})
            read[row.id or (row.organization_id, row.sensor_uuid)] = Source(
                row.organization_id,
                row.device_id,
                of_device,
                row.sensor_uuid or "",
                row.creates_variables,
                next(iter(of_device.values()), None),
                row.expires_at_ms or math.inf,
            )
        self._sources |= read
        return read

    def _sensors(self, variables: Iterable[AnyRow], devices: Mapping[int, AnyRow]) -> dict[int, dict[str, Sensor]]:
        """By device and uuid."""
        found: dict[int, dict[str, Sensor]] = {}
        for row in variables:
            made = Sensor(row.sensor_id, row.sensor_uuid)
            sensor = found.setdefault(row.device_id, {}).setdefault(row.sensor_uuid, made)
            if row.id is not None:
                device = devices[row.device_id]
                sensor.variables[row.variable_name] = Variable(
                    row.id,
                    row.variable_name,
                    row.type,
                    sensor.id,
                    sensor.uuid,
                    row.device_id,
                    device.device_uuid,
                    device.organization_id,
                    zlib.crc32(device.device_uuid.encode()) % self._partitions,
                )
        return found

    async def create_variables(self, unknown: Sequence[UnknownVariable]) -> None:
        """Makes what readings name and sensors lack, each as its first reading has it, unless another process makes it
        meanwhile."""
        wanted = {(one.sensor.id, one.name): one for one in reversed(unknown)}
        for _ in range(_COLLISIONS):
            try:
                async with self._database.write() as connection:
                    await store.make_variables(connection, wanted)
                break
            except AemosError as error:
                if error.kind is not Kind.EXISTS:
                    raise
                log.info("variables: another process was faster, or a sensor is gone")
        self._drop({one.source.device_id for one in wanted.values()})

    def look_again(self, _: bytes = b"") -> None:
        """The registry changed, or we may have missed that it did."""
        self._hint.set()

    async def refresh(self) -> None:
        """Drops what changed since the last time."""
        asked_at = now_ms()
        async with self._database.read() as connection:
            changed = set(await store.changes_since(connection, self._since_ms))
        self._since_ms = asked_at
        if changed:
            self._drop(changed)

    def _drop(self, device_ids: set[int]) -> None:
        stale = [key for key, source in self._sources.items() if source.device_id in device_ids]
        for key in stale:
            del self._sources[key]

    async def run(self, stop: asyncio.Event) -> None:
        """Drops what changed."""
        while not stop.is_set():
            try:
                await self.refresh()
            except AemosError as error:
                log.warning("registry changes: %s", error.detail)
            self._hint.clear()
            await wait(stop, _POLL_SECONDS, self._hint)
