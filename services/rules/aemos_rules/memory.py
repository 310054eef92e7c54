"""What nodes remember, in the database and, for the partitions that this worker judges, in its own memory.

The table is the truth: cells are written in the transaction of the effects that go with them. A worker's copy is good
while the worker owns the partition: a row that it claims, and finds still its own in each transaction that writes. Two
workers may believe for a moment that a partition is theirs; the one that claimed it later is right, and the other one
finds out before it commits, forgets, and judges again. So no other copy can be stale, and a flush of Redis is nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any
from uuid import uuid4

from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind
from aemos_core.outbox import Row
from sqlalchemy import select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_rules import tables as t
from aemos_rules.domain import RunIds
from aemos_rules.effects import Pending
from aemos_rules.run import Cell, Remembered

MOST_BYTES = 96_000_000
"""Of cells in memory, overhead included; those that rested longest go first, and come again from the table."""
_OVERHEAD = 400
_AT_ONCE = 500
_m = t.node_memory.c
_o = t.memory_owner.c

# What both databases take for "insert, or put in the place of the one with this key".
_CLAIM = text("REPLACE INTO memory_owner (lane, owner) VALUES (:lane, :owner)")
_REPLACE = text("REPLACE INTO node_memory (rule_chain_id, node, cell_key, value) VALUES (:chain, :node, :key, :value)")


class Fenced(AemosError):
    """Another worker judges these partitions now: what was remembered here is old."""

    def __init__(self) -> None:
        super().__init__(Kind.STALE, "another worker judges this partition")


class Memory:
    """The cells of the partitions that this worker owns; `Writes` applies what runs remember."""

    def __init__(self, database: Database, most_bytes: int = MOST_BYTES) -> None:
        self._database = database
        self.owner = uuid4().hex
        self._owned: set[int] = set()
        self._cells: OrderedDict[Cell, bytes] = OrderedDict()  # b"": there is nothing in the table
        self._most_bytes = most_bytes
        self._bytes = 0

    async def recall(self, partition: int, cells: Iterable[Cell]) -> dict[Cell, bytes]:
        """Those of the cells of a partition that hold something."""
        if partition not in self._owned:
            await self._claim(partition)
        wanted = set(cells)
        missing = iter(sorted(cell for cell in wanted if cell not in self._cells))
        while some := list(islice(missing, _AT_ONCE)):
            await self._load(some)
        for cell in wanted:
            self._cells.move_to_end(cell)
        found = {cell: value for cell in wanted if (value := self._cells[cell])}
        self._shrink()
        return found

    async def look(self, cells: Iterable[Cell]) -> dict[Cell, bytes]:
        """What cells of any partition hold in the table now: for who only looks."""
        await self._load(sorted(set(cells)))
        return {cell: value for cell, value in self._cells.items() if value}

    def forget(self, partition: int) -> None:
        """Whether the last transaction on the partition was committed is not known: only the table knows."""
        self._owned.discard(partition)
        for cell in [cell for cell in self._cells if cell.partition == partition]:
            self._bytes -= _size(self._cells.pop(cell))

    def keep(self, values: Mapping[Cell, bytes]) -> None:
        """What the table has now."""
        for cell, value in values.items():
            self._bytes += _size(value) - (_size(self._cells[cell]) if cell in self._cells else 0)
            self._cells[cell] = value
        self._shrink()

    async def _claim(self, partition: int) -> None:
        self.forget(partition)
        async with self._database.write() as connection:
            await connection.execute(_CLAIM, {"lane": partition, "owner": self.owner})
        self._owned.add(partition)

    async def _load(self, cells: Sequence[Cell]) -> None:
        names = {(cell.chain_id, cell.node, cell.key): cell for cell in cells}
        query = select(t.node_memory).where(tuple_(_m.rule_chain_id, _m.node, _m.cell_key).in_(list(names)))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        found = {names[row.rule_chain_id, row.node, row.cell_key]: bytes(row.value) for row in rows}
        for cell in cells:
            value = found.get(cell, b"")
            self._bytes += _size(value)
            self._cells[cell] = value

    def _shrink(self) -> None:
        while self._bytes > self._most_bytes:
            self._bytes -= _size(self._cells.popitem(last=False)[1])


class Writes(Pending):
    """The cells that one job writes: the last value of each."""

    def __init__(self, memory: Memory, effects: Sequence[Remembered]) -> None:
        self._memory, self._values = memory, {effect.cell: effect.value for effect in effects}

    async def write(self, connection: AsyncConnection, runs: RunIds) -> Sequence[Row]:
        """Raises Fenced unless the partitions are this worker's until the transaction ends."""
        partitions = {cell.partition for cell in self._values}
        query = select(_o.lane).where(_o.lane.in_(sorted(partitions)), _o.owner == self._memory.owner).with_for_update()
        if set((await connection.execute(query)).scalars()) != partitions:
            raise Fenced
        rows: list[dict[str, Any]] = [
            {"chain": cell.chain_id, "node": cell.node, "key": cell.key, "value": value}
            for cell, value in self._values.items()
        ]
        await connection.execute(_REPLACE, rows)
        return []

    async def settle(self) -> None:
        """The table has them now, and so has this worker."""
        self._memory.keep(self._values)


def _size(value: bytes) -> int:
    return len(value) + _OVERHEAD
