"""The outbox: what a transaction announces is a row in it, sent after the commit and kept until it is settled.

A row lives until whoever works on it says that it is done (a job's receipt), or, for what nobody answers, ten minutes.
So after a crash, and after Redis lost what it held, the rows that are still there are exactly what must go again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import uuid4

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.mysql import LONGBLOB
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_core.database import TABLE_ARGS, Database
from aemos_core.errors import AemosError
from aemos_core.outbox_lane import Lane, Sender
from aemos_core.redis_link import wait
from aemos_core.times import now_ms

log = logging.getLogger("aemos.outbox")

HEARTBEAT_SECONDS = 2.0
DEAD_AFTER_MS = 6_000
_FORGET_SECONDS = 0.5
_DELETE_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Row:
    """Something to send. `kind` names its sender, `weight` is what it counts in a batch; the rest is the outbox's."""

    kind: str
    partition: int
    payload: bytes
    weight: int = 1
    relay: str = ""
    seq: int = 0


class OutboxTables:
    """The two tables that every service with an outbox has in its own database."""

    def __init__(self, metadata: MetaData) -> None:
        self.rows = Table(
            "outbox",
            metadata,
            Column("relay", String(32), primary_key=True),
            Column("seq", BigInteger, primary_key=True, autoincrement=False),
            Column("kind", String(40), nullable=False),
            Column("lane", Integer, nullable=False),
            Column("weight", Integer, nullable=False),
            Column("payload", LargeBinary().with_variant(LONGBLOB, "mysql", "mariadb"), nullable=False),
            **TABLE_ARGS,
        )
        self.relays = Table(
            "outbox_relay",
            metadata,
            Column("id", String(32), primary_key=True),
            Column("owner", String(32), nullable=False),
            Column("alive_at_ms", BigInteger, nullable=False),
            Index("outbox_relay_owner", "owner"),
            **TABLE_ARGS,
        )


class Outbox:
    """A component: the relay of one process.

    Each process sends what it committed itself, straight from memory. The rows of a process that died are adopted by
    another one within 8 s, or at once when it stopped in order.
    """

    def __init__(self, database: Database, tables: OutboxTables) -> None:
        self.relay_id = uuid4().hex
        self._database = database
        self._tables = tables
        self._senders: dict[str, Sender] = {}
        self._seq = itertools.count(1)
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._relays = {self.relay_id}
        self._is_known = False
        self._settled: deque[tuple[int, str, int]] = deque()

    def add_sender(self, kind: str, sender: Sender) -> None:
        """Rows of this kind go by this sender; before the first row."""
        self._senders[kind] = sender

    async def add(self, connection: AsyncConnection, rows: Sequence[Row]) -> list[Row]:
        """Writes rows in the caller's transaction; give what it returns to `committed` after the commit."""
        if not self._is_known:  # or what is written before the first heartbeat would never be adopted
            await self._say_alive(connection)
        numbered = [replace(row, relay=self.relay_id, seq=next(self._seq)) for row in rows]
        if numbered:
            values = [
                {"relay": r.relay, "seq": r.seq, "kind": r.kind, "lane": r.partition, "weight": r.weight,
                 "payload": r.payload}
                for r in numbered
            ]  # fmt: skip
            await connection.execute(insert(self._tables.rows), values)
        return numbered

    def committed(self, rows: Sequence[Row]) -> None:
        """Sends rows whose transaction is durable; never waits, never refuses: what is too much stays in the table."""
        for row in rows:
            self._lane(row.kind, row.partition).committed(row)

    async def run(self, stop: asyncio.Event) -> None:
        """Sends, forgets what is settled, adopts what others left; at the end gives its own rows up for adoption."""
        async with asyncio.TaskGroup() as group:
            background = [group.create_task(self._forget_settled()), group.create_task(self._watch_senders())]
            while not stop.is_set():
                await self._beat()
                await wait(stop, HEARTBEAT_SECONDS)
            await self._drain()
            for task in background:
                task.cancel()
        await self._retire()

    def _lane(self, kind: str, partition: int) -> Lane:
        lane = self._lanes.get((kind, partition))
        if lane is None:
            lane = Lane(self.relay_id, self._senders[kind], partition, self._read(kind, partition), self._settle)
            self._lanes[kind, partition] = lane
        return lane

    def _read(self, kind: str, partition: int):  # type: ignore[no-untyped-def]
        rows = self._tables.rows.c

        async def read(relay: str, after: int, limit: int) -> list[Row]:
            query = (
                select(rows.seq, rows.payload, rows.weight)
                .where(rows.relay == relay, rows.seq > after, rows.kind == kind, rows.lane == partition)
                .order_by(rows.seq)
                .limit(limit)
            )
            async with self._database.read() as connection:
                found = (await connection.execute(query)).all()
            return [Row(kind, partition, bytes(r.payload), r.weight, relay, r.seq) for r in found]

        return read

    def _settle(self, rows: Sequence[Row], keep_ms: int) -> None:
        due = now_ms() + keep_ms
        self._settled.extend((due, row.relay, row.seq) for row in rows)

    async def _forget_settled(self) -> None:
        while True:
            await asyncio.sleep(_FORGET_SECONDS)
            try:
                await self._forget(now_ms())
            except AemosError as error:
                log.warning("settled rows stay for now: %s", error.detail)

    async def _forget(self, now: int) -> None:
        while self._settled and self._settled[0][0] <= now:
            due = list(itertools.islice(self._settled, _DELETE_AT_ONCE))
            due = list(itertools.takewhile(lambda entry: entry[0] <= now, due))
            rows = self._tables.rows
            async with self._database.write() as connection:
                for relay in sorted({relay for _, relay, _ in due}):
                    seqs = [seq for _, owner, seq in due if owner == relay]
                    await connection.execute(delete(rows).where(rows.c.relay == relay, rows.c.seq.in_(seqs)))
            for _ in due:
                self._settled.popleft()

    async def _watch_senders(self) -> None:
        """Sends again what Redis lost: its run id is another one, or it holds a key no more."""
        while True:
            await asyncio.sleep(1.0)
            for kind, sender in self._senders.items():
                if await sender.lost_everything():
                    log.warning("redis lost what it held; sending %s again", kind)
                    for (lane_kind, _), lane in self._lanes.items():
                        if lane_kind == kind:
                            lane.send_again(self._relays)

    async def _beat(self) -> None:
        try:
            async with self._database.write() as connection:
                await self._say_alive(connection)
                adopted = await self._adopt(connection)
            self._is_known = True
            for relay in adopted:
                await self._take_over(relay)
        except AemosError as error:
            log.warning("heartbeat missed: %s", error.detail)

    async def _say_alive(self, connection: AsyncConnection) -> None:
        relays, alive = self._tables.relays, now_ms()
        # Its own one too when another process, taking it for dead, has adopted it: only rows of the dead need adoption.
        mine = update(relays).where((relays.c.owner == self.relay_id) | (relays.c.id == self.relay_id))
        if (await connection.execute(mine.values(owner=self.relay_id, alive_at_ms=alive))).rowcount == 0:
            await connection.execute(insert(relays).values(id=self.relay_id, owner=self.relay_id, alive_at_ms=alive))

    async def _adopt(self, connection: AsyncConnection) -> list[str]:
        relays = self._tables.relays
        dead = select(relays.c.id, relays.c.owner).where(relays.c.alive_at_ms < now_ms() - DEAD_AFTER_MS)
        adopted = []
        for relay, owner in (await connection.execute(dead)).all():
            claim = update(relays).where(relays.c.id == relay, relays.c.owner == owner)
            claimed = await connection.execute(claim.values(owner=self.relay_id, alive_at_ms=now_ms()))
            if claimed.rowcount == 1:
                adopted.append(relay)
        return adopted

    async def _take_over(self, relay: str) -> None:
        rows, relays = self._tables.rows.c, self._tables.relays
        async with self._database.read() as connection:
            query = select(rows.kind, rows.lane).where(rows.relay == relay).distinct()
            lanes = (await connection.execute(query)).all()
        if not lanes:
            async with self._database.write() as connection:
                await connection.execute(delete(relays).where(relays.c.id == relay))
            return
        log.info("adopted the outbox rows of %s", relay)
        self._relays.add(relay)
        for kind, partition in lanes:
            self._lane(kind, partition).catch_up(relay)

    async def _drain(self) -> None:
        await asyncio.gather(*(lane.drain() for lane in self._lanes.values()))
        try:
            await self._forget(now_ms())
        except AemosError as error:
            log.warning("settled rows stay: %s", error.detail)

    async def _retire(self) -> None:
        for lane in self._lanes.values():
            lane.close()
        relays = self._tables.relays
        try:
            async with self._database.write() as connection:
                await connection.execute(update(relays).where(relays.c.owner == self.relay_id).values(alive_at_ms=0))
        except AemosError as error:
            log.warning("not given up for adoption: %s", error.detail)


class OutboxRows(Protocol):
    """What a store needs of the outbox."""

    async def add(self, connection: AsyncConnection, rows: Sequence[Row]) -> list[Row]:
        """See Outbox.add."""

    def committed(self, rows: Sequence[Row]) -> None:
        """See Outbox.committed."""
