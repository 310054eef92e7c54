"""Refused messages of devices: the last hundred of each are kept, the others counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from aemos.v1 import rejection_pb2 as pb
from aemos.v1 import rejection_pb2_grpc
from aemos_core.database import Database
from aemos_core.identity import caller
from aemos_core.paging import page_of
from aemos_core.records import listed
from aemos_core.rpc import Context
from sqlalchemy import bindparam, delete, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_ingest import codec, registry_store
from aemos_ingest import tables as t
from aemos_ingest.registry_store import DEVICE

KEPT = 100
_LENGTHS = {"reason": 60, "detail": 500, "payload": 200}


class Rejections(rejection_pb2_grpc.RejectionServiceServicer):
    """The servicer of refusals."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def RecordRejections(
        self, request: pb.RecordRejectionsRequest, context: Context
    ) -> pb.RecordRejectionsResponse:
        """Four statements, however many devices and refusals there are."""
        counts = Counter({one.device_id: one.count for one in request.counts})
        devices = {one.device_id for one in request.rejections} | counts.keys()
        async with self._database.write() as connection:
            recorded = Counter(await _recorded_of(connection, devices))
            rows = _rows(request.rejections, recorded)
            if rows:
                places = [(row["device_id"], row["slot"]) for row in rows]
                taken = tuple_(t.rejection.c.device_id, t.rejection.c.slot).in_(places)
                await connection.execute(delete(t.rejection).where(taken))
                await connection.execute(insert(t.rejection), rows)
            await _count(connection, recorded, counts)
        return pb.RecordRejectionsResponse()

    async def ListRejections(self, request: pb.ListRejectionsRequest, context: Context) -> pb.ListRejectionsResponse:
        """Refusals of a device, newest first, and how many more there were."""
        c, page = t.rejection.c, page_of(request)
        async with self._database.read() as connection:
            owner = await registry_store.get(connection, DEVICE, caller().organization_id, request.device)
            query = select(t.rejection).where(c.device_id == owner.id)
            rows, token = await listed(connection, query, c.number, page, newest_first=True)
        not_kept = owner.rejections_counted + max(owner.rejections_recorded - KEPT, 0)
        rejections = map(codec.rejection, rows)
        return pb.ListRejectionsResponse(rejections=rejections, next_page_token=token, not_kept=not_kept)


async def _recorded_of(connection: AsyncConnection, device_ids: Iterable[int]) -> dict[int, int]:
    """How many refusals each device had; those that exist are locked until the transaction's end."""
    c = t.device.c
    query = select(c.id, c.rejections_recorded).where(c.id.in_(list(device_ids))).order_by(c.id).with_for_update()
    return {row.id: row.rejections_recorded for row in await connection.execute(query)}


def _rows(given: Iterable[pb.NewRejection], recorded: Counter[int]) -> list[dict[str, Any]]:
    """Rows for the ring, numbered on from `recorded`, which counts on; of two for the same slot the later one."""
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for one in given:
        if one.device_id not in recorded:
            continue
        recorded[one.device_id] += 1
        number = recorded[one.device_id]
        rows[one.device_id, number % KEPT] = _row(one.device_id, number, one.rejection)
    return list(rows.values())


def _row(device_id: int, number: int, refused: pb.Rejection) -> dict[str, Any]:
    texts = {name: getattr(refused, name)[:most] for name, most in _LENGTHS.items()}
    # Both may hold the name of an unknown field, as long as a reading; twenty of these fit the column, escaped too.
    errors = [{"loc": error.loc[:250], "message": error.message[:200]} for error in refused.errors]
    return {
        "device_id": device_id,
        "slot": number % KEPT,
        "number": number,
        "at_ms": refused.rejected_at.ToMilliseconds(),
        "protocol": refused.protocol,
        "errors": msgspec.json.encode(errors).decode(),
        **texts,
    }


async def _count(connection: AsyncConnection, recorded: Mapping[int, int], counts: Mapping[int, int]) -> None:
    if not recorded:
        return
    c = t.device.c
    counted = c.rejections_counted + bindparam("more")
    numbers = update(t.device).values({c.rejections_recorded: bindparam("recorded"), c.rejections_counted: counted})
    rows = [{"device": one, "recorded": number, "more": counts.get(one, 0)} for one, number in recorded.items()]
    await connection.execute(numbers.where(c.id == bindparam("device")), rows)
