"""What runs say, carried out: all effects of a job in one transaction, announced with it.

One registry: the appliers that wiring gives. A new effect is its type, beside the node that makes it, and an applier.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from aemos_core.database import Database
from aemos_core.outbox import OutboxRows, Row
from sqlalchemy.ext.asyncio import AsyncConnection

Cause: TypeAlias = tuple[int, int, int]
"""A run that changed something: (chain id, reading id or 0, event time in ms)."""
RunIds: TypeAlias = Mapping[Cause, int]
"""Of the runs that are recorded."""


class Pending:
    """What an applier is about to do for one job."""

    writes = True
    """Whether it needs the transaction."""
    causes: Collection[Cause] = ()
    """After `look`: the runs whose effects change something that could also stay as it is."""

    async def look(self, connection: AsyncConnection) -> None:
        """Looks again, and locks what it will change: others may have been faster."""

    async def write(self, connection: AsyncConnection, runs: RunIds) -> Sequence[Row]:
        """Stores it; returns what is to be sent after the commit."""
        raise NotImplementedError

    async def settle(self) -> None:
        """Does what follows, after the commit if there was one."""


class Applier(Protocol):
    """Carries out the effects of one type. Doing it again for the same effects does nothing."""

    effect: type[Any]

    async def prepare(self, effects: Sequence[Any]) -> Pending | None:
        """Looks at what there is; None when nothing follows. `effects` are in the order in which runs made them."""


class RunRecorder(Protocol):
    """Records runs beside what they did; its effect is the run itself."""

    effect: type[Any]

    def wants(self, ran: Sequence[Any]) -> bool:
        """Whether there is something to write though no effect changes anything."""

    async def record(
        self, connection: AsyncConnection, ran: Sequence[Any], causes: Collection[Cause]
    ) -> tuple[RunIds, list[Row]]:
        """Records those that cause something; returns their ids, and what is to be sent after the commit."""


class Effects:
    """Applies the effects of a job. Doing it again does nothing."""

    def __init__(
        self, database: Database, outbox: OutboxRows, appliers: Iterable[Applier], recorder: RunRecorder
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._recorder = recorder
        self._appliers = {applier.effect: applier for applier in appliers}

    async def apply(self, effects: Iterable[Any]) -> None:
        """A transaction only when something changes; appliers write in the order of their registry."""
        by_type: dict[type[Any], list[Any]] = {}
        for effect in effects:
            by_type.setdefault(type(effect), []).append(effect)
        if not by_type:
            return
        ran = by_type.pop(self._recorder.effect, [])
        pending = [
            found
            for kind, applier in self._appliers.items()
            if kind in by_type and (found := await applier.prepare(by_type.pop(kind))) is not None
        ]
        if by_type:
            raise TypeError(f"nobody applies {', '.join(kind.__name__ for kind in by_type)}")
        writing = [each for each in pending if each.writes]
        if writing or self._recorder.wants(ran):
            await self._write(writing, ran)
        for each in pending:
            await each.settle()

    async def _write(self, writing: Sequence[Pending], ran: Sequence[Any]) -> None:
        async with self._database.write() as connection:
            for each in writing:
                await each.look(connection)
            runs, rows = await self._recorder.record(connection, ran, {c for each in writing for c in each.causes})
            for each in writing:
                rows += await each.write(connection, runs)
            rows = await self._outbox.add(connection, rows)
        self._outbox.committed(rows)
