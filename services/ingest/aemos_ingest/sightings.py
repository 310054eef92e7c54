"""When tokens were used and devices seen: kept in memory, written in batches, so that a reading costs no write."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from aemos_core.database import Database
from aemos_core.errors import AemosError
from aemos_core.times import now_ms
from aemos_core.waiting import wait
from sqlalchemy import Column

from aemos_ingest import registry_store as store
from aemos_ingest import tables as t
from aemos_ingest.sources import Sources

log = logging.getLogger("aemos.ingest")

WRITE_SECONDS = 10.0
USE_SECONDS = 60.0
"""At most so often a token's last use is written."""
_AT_ONCE = 500


class Sightings:
    """A component: writes who was seen every 10 s, one statement for 500 of them."""

    def __init__(self, database: Database, sources: Sources) -> None:
        self._database = database
        self._sources = sources
        self._seen: dict[int, int] = {}
        self._used: dict[int, int] = {}
        self._written: dict[int, int] = {}

    def saw(self, token_ids: Iterable[int]) -> None:
        """These tokens were used just now."""
        self._seen.update(dict.fromkeys(token_ids, now_ms()))

    async def run(self, stop: asyncio.Event) -> None:
        """Writes, until told to stop and once more."""
        while not stop.is_set():
            await wait(stop, WRITE_SECONDS)
            try:
                await self.write()
            except AemosError as error:
                log.warning("who was seen is written later: %s", error.detail)

    async def write(self) -> None:
        """Writes when devices were seen, and of tokens what was not written within a minute."""
        seen = dict(self._seen)
        sources = await self._sources.load(seen.keys())
        devices: dict[int, int] = {}
        for token_id, at in seen.items():
            if source := sources.get(token_id):
                devices[source.device_id] = max(at, devices.get(source.device_id, 0))
        await self._set(t.device.c.last_seen_at_ms, devices)
        self._seen = {token_id: at for token_id, at in self._seen.items() if seen.get(token_id) != at}
        self._used.update(seen)
        await self._write_uses(now_ms() - USE_SECONDS * 1000)

    async def _write_uses(self, before_ms: float) -> None:
        self._written = {token_id: at for token_id, at in self._written.items() if at > before_ms}
        due = {token_id: at for token_id, at in self._used.items() if token_id not in self._written}
        await self._set(t.device_token.c.last_used_at_ms, due)
        self._written.update(dict.fromkeys(due, now_ms()))
        self._used = {token_id: at for token_id, at in self._used.items() if token_id not in due}

    async def _set(self, column: Column[Any], times: Mapping[int, int]) -> None:
        rows = sorted(times.items())  # in one order everywhere, so that two processes do not wait for each other
        for at in range(0, len(rows), _AT_ONCE):
            async with self._database.write() as connection:
                await store.set_times(connection, column, dict(rows[at : at + _AT_ONCE]))
