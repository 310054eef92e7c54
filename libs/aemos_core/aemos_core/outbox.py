"""The outbox: what a transaction announces is a row in it, sent after the commit and kept until it is settled.

A row lives until whoever works on it says that it is done (a job's receipt), or, for what nobody answers, ten minutes.
So after a crash, and after Redis lost what it held, the rows that are still there are exactly what must go again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, Protocol
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
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.mysql import LONGBLOB
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_core.database import TABLE_ARGS, TRANSACTION_SECONDS, Database
from aemos_core.errors import AemosError
from aemos_core.outbox_lane import Lane, Sender
from aemos_core.times import now_ms
from aemos_core.waiting import wait

log = logging.getLogger("aemos.outbox")

HEARTBEAT_SECONDS = 1.0
DEAD_AFTER_MS = 4_000
_UNSURE_SECONDS = TRANSACTION_SECONDS + 1.0
_UNSURE_LOOKS = 5
_FORGET_SECONDS = 0.5
_WATCH_SECONDS = 1.0
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


@dataclass(slots=True)
class _Unsure:
    """A row whose transaction has not said how it ended. A commit that was cut short may still have happened."""

    row: Row
    since: float = field(default_factory=time.monotonic)
    looks: int = 0


class _Settled(NamedTuple):
    """A row that goes at this time."""

    due_ms: int
    relay: str
    seq: int


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
    another one within 5 s, or at once when it stopped in order. A new process sends nothing of its own before it knows
    that the others live or has adopted what they left: so what a device sent before a crash goes before what it sent
    after. A row whose commit was cut short is looked for in the table, and sent when it is there.
    """

    def __init__(self, database: Database, tables: OutboxTables) -> None:
        self.relay_id = f"{now_ms():012x}{uuid4().hex[:20]}"  # the older process has the lower one
        self._database = database
        self._tables = tables
        self._senders: dict[str, Sender] = {}
        self._seq = itertools.count(1)
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._adopted: dict[str, int] = {}
        self._unsure: dict[int, _Unsure] = {}
        self._unheard: dict[str, int] | None = None
        self._in_order = asyncio.Event()
        self._settled: defaultdict[int, deque[_Settled]] = defaultdict(deque)
        """By how long they are kept: what goes at once never waits behind what stays for ten minutes."""

    def add_sender(self, kind: str, sender: Sender) -> None:
        """Rows of this kind go by this sender; before the first row."""
        self._senders[kind] = sender

    async def add(self, connection: AsyncConnection, rows: Sequence[Row]) -> list[Row]:
        """Writes rows in the caller's transaction; give what it returns to `committed` after the commit."""
        numbered = [replace(row, relay=self.relay_id, seq=next(self._seq)) for row in rows]
        if numbered:
            values = [
                {"relay": r.relay, "seq": r.seq, "kind": r.kind, "lane": r.partition, "weight": r.weight,
                 "payload": r.payload}
                for r in numbered
            ]  # fmt: skip
            await connection.execute(insert(self._tables.rows), values)
            self._unsure.update((row.seq, _Unsure(row)) for row in numbered)
        return numbered

    def committed(self, rows: Sequence[Row]) -> None:
        """Sends rows whose transaction is durable; never waits, never refuses: what is too much stays in the table."""
        for row in rows:
            self._unsure.pop(row.seq, None)
            self._lane(row.kind, row.partition).committed(row)

    async def run(self, stop: asyncio.Event) -> None:
        """Sends, forgets what is settled, adopts what others left; at the end gives its own rows up for adoption."""
        drained = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._forget_settled(drained))
            group.create_task(self._watch_senders(drained))
            while not stop.is_set():
                await self._beat()
                await wait(stop, HEARTBEAT_SECONDS)
            await asyncio.gather(*(lane.drain() for lane in self._lanes.values()))
            drained.set()
        await self._retire()

    def _lane(self, kind: str, partition: int) -> Lane:
        lane = self._lanes.get((kind, partition))
        if lane is None:
            read = partial(self._read, kind, partition)
            lane = Lane(self.relay_id, self._senders[kind], partition, read, self._settle, self._in_order)
            self._lanes[kind, partition] = lane
        return lane

    async def _read(self, kind: str, partition: int, relay: str, after: int, limit: int) -> list[Row]:
        rows = self._tables.rows.c
        query = (
            select(rows.seq, rows.payload, rows.weight)
            .where(rows.relay == relay, rows.seq > after, rows.kind == kind, rows.lane == partition)
            .order_by(rows.seq)
            .limit(limit)
        )
        async with self._database.read() as connection:
            found = (await connection.execute(query)).all()
        return [Row(kind, partition, bytes(r.payload), r.weight, relay, r.seq) for r in found]

    def _settle(self, rows: Sequence[Row], keep_ms: int) -> None:
        due = now_ms() + keep_ms
        self._settled[keep_ms].extend(_Settled(due, row.relay, row.seq) for row in rows)

    async def _forget_settled(self, drained: asyncio.Event) -> None:
        while not await wait(drained, _FORGET_SECONDS):
            try:
                await self._forget(now_ms())
            except AemosError as error:
                log.warning("settled rows stay for now: %s", error.detail)

    async def _forget(self, now: int) -> None:
        for settled in list(self._settled.values()):
            while settled and settled[0].due_ms <= now:
                due = list(
                    itertools.takewhile(lambda row: row.due_ms <= now, itertools.islice(settled, _DELETE_AT_ONCE))
                )
                await self._delete(due)
                for _ in due:
                    settled.popleft()

    async def _delete(self, due: Sequence[_Settled]) -> None:
        rows = self._tables.rows
        async with self._database.write() as connection:
            for relay in sorted({row.relay for row in due}):
                seqs = [row.seq for row in due if row.relay == relay]
                await connection.execute(delete(rows).where(rows.c.relay == relay, rows.c.seq.in_(seqs)))

    async def _watch_senders(self, drained: asyncio.Event) -> None:
        """Sends again what Redis lost: its run id is another one, or it holds a key no more."""
        while not await wait(drained, _WATCH_SECONDS):
            for kind, sender in self._senders.items():
                if await sender.lost_everything():
                    log.warning("redis lost what it held; sending %s again", kind)
                    for (lane_kind, _), lane in self._lanes.items():
                        if lane_kind == kind:
                            lane.send_again((self.relay_id, *self._adopted))

    async def _beat(self) -> None:
        try:
            async with self._database.write() as connection:
                await self._say_alive(connection)
                left = await self._left(connection)
                heard = await self._adopt(connection, left)
                durable = await self._look_for_unsure(connection)
            for relay in [relay for relay, (owner, _) in heard.items() if owner == self.relay_id != relay]:
                await self._take_over(relay, left.get(relay, 0))
        except AemosError as error:
            log.warning("heartbeat missed: %s", error.detail)
            return
        self.committed(durable)
        self._begin_in_order({relay: alive for relay, (owner, alive) in heard.items() if owner != self.relay_id}, left)

    async def _say_alive(self, connection: AsyncConnection) -> None:
        relays, alive = self._tables.relays, now_ms()
        # Its own also when another process, taking it for dead, has adopted it.
        for mine in (relays.c.owner == self.relay_id, relays.c.id == self.relay_id):
            said = await connection.execute(update(relays).where(mine).values(owner=self.relay_id, alive_at_ms=alive))
        if said.rowcount == 0:
            await connection.execute(insert(relays).values(id=self.relay_id, owner=self.relay_id, alive_at_ms=alive))

    async def _left(self, connection: AsyncConnection) -> dict[str, int]:
        """By relay the last of its rows that are in the table."""
        rows = self._tables.rows.c
        query = select(rows.relay, func.max(rows.seq)).group_by(rows.relay)
        return {relay: last for relay, last in (await connection.execute(query)).all()}

    async def _adopt(self, connection: AsyncConnection, left: Mapping[str, int]) -> dict[str, tuple[str, int]]:
        """Claims relays of the dead, and rows of relays nobody knows; returns (owner, alive at) of every relay."""
        relays, now = self._tables.relays, now_ms()
        heard = {r.id: (r.owner, r.alive_at_ms) for r in (await connection.execute(select(relays))).all()}
        for relay in left.keys() - heard.keys():
            await connection.execute(insert(relays).values(id=relay, owner=self.relay_id, alive_at_ms=now))
            heard[relay] = (self.relay_id, now)
        for relay, (owner, alive) in heard.items():
            if alive < now - DEAD_AFTER_MS:
                claim = update(relays).where(
                    relays.c.id == relay, relays.c.owner == owner, relays.c.alive_at_ms == alive
                )
                if (await connection.execute(claim.values(owner=self.relay_id, alive_at_ms=now))).rowcount:
                    heard[relay] = (self.relay_id, now)
        return heard

    async def _take_over(self, relay: str, last: int) -> None:
        rows, relays = self._tables.rows.c, self._tables.relays
        if not last:
            self._adopted.pop(relay, None)
            async with self._database.write() as connection:
                gone = delete(relays).where(relays.c.id == relay, relays.c.owner == self.relay_id)
                await connection.execute(gone)
            return
        after = self._adopted.get(relay, 0)
        if last <= after:
            return
        async with self._database.read() as connection:
            query = select(rows.kind, rows.lane).where(rows.relay == relay, rows.seq > after).distinct()
            lanes = (await connection.execute(query)).all()
        log.info("adopted the outbox rows of %s", relay)
        self._adopted[relay] = last
        for kind, partition in lanes:
            self._lane(kind, partition).catch_up(relay, after)

    async def _look_for_unsure(self, connection: AsyncConnection) -> list[Row]:
        """Those that are in the table after all."""
        before = time.monotonic() - _UNSURE_SECONDS
        old = {seq: unsure for seq, unsure in self._unsure.items() if unsure.since < before}
        if not old:
            return []
        rows = self._tables.rows.c
        query = select(rows.seq).where(rows.relay == self.relay_id, rows.seq.in_(old))
        found = set((await connection.execute(query)).scalars())
        for seq, unsure in old.items():
            unsure.looks += 1
            if unsure.looks >= _UNSURE_LOOKS and seq not in found:
                del self._unsure[seq]
        return [old[seq].row for seq in sorted(found)]

    def _begin_in_order(self, others: Mapping[str, int], left: Collection[str]) -> None:
        """Lets the lanes send once each process that left rows has been heard a second time, or was adopted."""
        if self._unheard is None:
            self._unheard = {relay: alive for relay, alive in others.items() if relay in left}
        self._unheard = {
            relay: alive for relay, alive in self._unheard.items() if relay in left and others.get(relay) == alive
        }
        if not self._unheard:
            self._in_order.set()

    async def _retire(self) -> None:
        for lane in self._lanes.values():
            lane.close()
        relays = self._tables.relays
        try:
            await self._forget(now_ms())
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
