"""What gateway hands to ingest in one call."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aemos.v1 import data_stream_pb2 as pb
from aemos_core.errors import AemosError, Kind
from aemos_core.rpc import MAX_MESSAGE_BYTES
from aemos_gateway.device_auth import Device
from aemos_gateway.quota import Quota
from aemos_gateway.readings import Receipt
from aemos_gateway.service import MOST_PER_CALL, Uplink


class FakeIngest:
    """Takes calls while it may, and stores everything; `sizes` are their bytes."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.sizes: list[int] = []

    async def WriteReadings(self, request: pb.WriteReadingsRequest, timeout: float) -> pb.WriteReadingsResponse:
        self.sizes.append(request.ByteSize())
        await self.may.wait()
        return pb.WriteReadingsResponse(results=[pb.WriteResult(id=1) for _ in request.readings])


class Anybody:
    """Hears of devices, and does nothing."""

    def heard(self, device_id: int) -> None:
        pass


@pytest.mark.parametrize("letter", ["n", "\N{SNOWMAN}", "\N{COW}"])
async def test_a_call_is_never_larger_than_ingest_takes(letter: str) -> None:
    """Or all who are in it were refused, for the long names of one: what waited while a call was under way."""
    ingest, nobody = FakeIngest(), Anybody()
    rejections: Any = None
    uplink = Uplink(ingest, Quota(1_000_000, 1_000_000), rejections, nobody)  # type: ignore[arg-type]
    device = Device(1, 1, 1, "d1")
    reading = {"variableName": letter * 200, "messageId": letter * 128, "value": "v" * 1_000}
    body = json.dumps(reading, ensure_ascii=False).encode()
    writing = [asyncio.create_task(uplink.write(device, body, "http")) for _ in range(MOST_PER_CALL + 100)]
    ingest.may.set()
    assert all(receipt.stored for receipt in await asyncio.gather(*writing))
    assert len(ingest.sizes) > 1
    assert max(ingest.sizes) < MAX_MESSAGE_BYTES


async def test_an_answer_that_is_not_understood_fails_its_reading_only() -> None:
    """An ingest of another version may refuse for a reason that this gateway does not know."""

    class Newer(FakeIngest):
        async def WriteReadings(self, request: pb.WriteReadingsRequest, timeout: float) -> pb.WriteReadingsResponse:
            newer = pb.WriteResult(refusal=pb.Refusal(kind="newer"))
            return pb.WriteReadingsResponse(results=[newer, pb.WriteResult(id=1)])

    rejections: Any = None
    uplink = Uplink(Newer(), Quota(1_000_000, 1_000_000), rejections, Anybody())  # type: ignore[arg-type]
    body = b'{"variableName": "temperature", "value": 1}'
    device = Device(1, 1, 1, "d1")
    writing = [asyncio.create_task(uplink.write(device, body, "http")) for _ in range(2)]
    async with asyncio.timeout(10):
        failed, stored = await asyncio.gather(*writing, return_exceptions=True)
    assert isinstance(failed, AemosError)
    assert failed.kind is Kind.INTERNAL
    assert isinstance(stored, Receipt)


async def test_what_is_refused_counts_too() -> None:
    """Looking through a megabyte for a mistake costs as much as taking it (row 23)."""
    rejections: Any = None
    uplink = Uplink(FakeIngest(), Quota(10, 1_000_000), rejections, Anybody())  # type: ignore[arg-type]
    body = b"[" + b'{"variableName": "temperature", "value": 1},' * 999 + b"{}]"
    for kind in (Kind.INVALID, Kind.BUSY):
        with pytest.raises(AemosError) as refused:
            await uplink.write(Device(1, 1, 1, "d1"), body, "http")
        assert refused.value.kind is kind
