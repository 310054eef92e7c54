"""An outbox that sends nothing."""

from __future__ import annotations

from collections.abc import Sequence

from aemos_core.outbox import Row
from sqlalchemy.ext.asyncio import AsyncConnection


class Killed(BaseException):
    """The process died."""


class FakeOutbox:
    """Writes nothing, notes what was committed; may be told to die when rows are added, which is before the commit."""

    def __init__(self) -> None:
        self.sent: list[Row] = []
        self.dies = False

    async def add(self, connection: AsyncConnection, rows: Sequence[Row]) -> list[Row]:
        if self.dies:
            raise Killed
        return list(rows)

    def committed(self, rows: Sequence[Row]) -> None:
        self.sent += rows
