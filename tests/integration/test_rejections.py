"""Refused messages in ingest, on both databases: the last hundred of each device, the others counted."""

from __future__ import annotations

import asyncio
from typing import Any

import aemos_ingest
import pytest
from aemos.v1 import rejection_pb2 as pb
from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind
from aemos_core.identity import Caller, set_caller
from aemos_core.times import to_timestamp
from aemos_ingest.rejections import KEPT, Rejections

from tests.integration.conftest import Open
from tests.support.ingest import ingest


@pytest.fixture
async def database(open_owned: Open) -> Database:
    return await open_owned(aemos_ingest)


def refused(device_id: int, number: int) -> pb.NewRejection:
    error = pb.RejectionError(loc="value", message="wrong")
    rejection = pb.Rejection(
        rejected_at=to_timestamp(number), protocol="mqtt", reason="r" * 99, payload=str(number), errors=[error]
    )
    return pb.NewRejection(device_id=device_id, rejection=rejection)


async def record(rejections: Rejections, request: pb.RecordRejectionsRequest) -> None:
    await rejections.RecordRejections(request, None)  # type: ignore[arg-type]


async def page(rejections: Rejections, device: str, **fields: Any) -> pb.ListRejectionsResponse:
    request = pb.ListRejectionsRequest(device=device, **fields)
    return await rejections.ListRejections(request, None)  # type: ignore[arg-type]


async def test_the_last_hundred_are_kept(database: Database) -> None:
    """Newest first, in pages, however they came; what is no longer kept is counted with what never was."""
    async with ingest(database) as one:
        rejections, device = Rejections(database), one.device_id
        for numbers in (range(1, 61), range(61, 62), range(62, 301)):
            given = [refused(device, number) for number in numbers]
            counts = [pb.RejectionCount(device_id=device, count=5)]
            await record(rejections, pb.RecordRejectionsRequest(rejections=given, counts=counts))
        first = await page(rejections, "freezer-1", page_size=60)
        rest = await page(rejections, "freezer-1", page_size=60, page_token=first.next_page_token)
        assert [one.id for one in (*first.rejections, *rest.rejections)] == list(range(300, 300 - KEPT, -1))
        assert (rest.next_page_token, first.not_kept) == ("", 200 + 15)
        newest = first.rejections[0]
        assert (newest.payload, newest.reason, newest.rejected_at.ToMilliseconds()) == ("300", "r" * 60, 300)
        assert [(e.loc, e.message) for e in newest.errors] == [("value", "wrong")]


async def test_two_gateways_record_at_the_same_time(database: Database) -> None:
    """Each refusal has a number of its own; a device that is gone takes nothing with it."""
    async with ingest(database) as one:
        other = await one.registry.create_device("Other", "other")
        rejections = Rejections(database)
        requests = [
            pb.RecordRejectionsRequest(rejections=[refused(one.device_id, n), refused(other.id, n), refused(10**6, n)])
            for n in range(20)
        ]
        await asyncio.gather(*(record(rejections, request) for request in requests))
        for device in ("freezer-1", "other"):
            answer = await page(rejections, device)
            assert [one.id for one in answer.rejections] == list(range(20, 0, -1))
            assert sorted(int(one.payload) for one in answer.rejections) == list(range(20))
            assert answer.not_kept == 0


async def test_a_long_mistake_is_cut(database: Database) -> None:
    """The name of a field that nobody knows may be as long as a reading: its refusal is recorded, with others."""
    async with ingest(database) as one:
        long = refused(one.device_id, 1)
        long.rejection.errors[0].loc, long.rejection.errors[0].message = "💥" * 60_000, "unknown field " + "x" * 60_000
        long.rejection.errors.extend([long.rejection.errors[0]] * 19)
        await record(Rejections(database), pb.RecordRejectionsRequest(rejections=[long, refused(one.device_id, 2)]))
        newest, cut = (await page(Rejections(database), "freezer-1")).rejections
        assert newest.errors[0].loc == "value"
        assert {(e.loc[:1], e.message[:14]) for e in cut.errors} == {("💥", "unknown field ")}


async def test_another_organization_sees_nothing(database: Database) -> None:
    """As if the device did not exist."""
    async with ingest(database):
        set_caller(Caller(2, 9, "admin", "token"))
        with pytest.raises(AemosError) as error:
            await page(Rejections(database), "freezer-1")
        assert error.value.kind is Kind.NOT_FOUND
