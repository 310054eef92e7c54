"""What the gateway hands to ingest of refused messages: how many with their reasons, and what of their payload."""

from __future__ import annotations

from typing import Any

import pytest
from aemos.v1 import rejection_pb2 as pb
from aemos_core.errors import AemosError, Kind, invalid, unavailable
from aemos_gateway.device_auth import Device
from aemos_gateway.rejections import MOST_A_SECOND, Rejections, beginning

DEVICE = Device(7, 1, 42, "abc-123")
OTHER = Device(8, 1, 43, "def-456")
WRONG = invalid("value", "the variable is a number", "wrong_type")


class FakeIngest:
    """Records what it is sent; while `broken` it answers that instead."""

    def __init__(self) -> None:
        self.requests: list[pb.RecordRejectionsRequest] = []
        self.broken: AemosError | None = None

    async def RecordRejections(self, request: pb.RecordRejectionsRequest) -> pb.RecordRejectionsResponse:
        if self.broken is not None:
            raise self.broken
        self.requests.append(request)
        return pb.RecordRejectionsResponse()

    @property
    def kept(self) -> list[pb.NewRejection]:
        return [one for request in self.requests for one in request.rejections]

    def counted(self, device: Device) -> int:
        return sum(c.count for request in self.requests for c in request.counts if c.device_id == device.device_id)


@pytest.fixture
def ingest() -> FakeIngest:
    return FakeIngest()


@pytest.fixture
def rejections(ingest: FakeIngest) -> Rejections:
    return Rejections(ingest)  # type: ignore[arg-type]


async def test_a_refusal_says_all_there_is_to_know(rejections: Rejections, ingest: FakeIngest) -> None:
    """Protocol, reason, detail, fields, and how the message began."""
    heard: list[Any] = []
    rejections.record(DEVICE, "mqtt", b'{"value": "x"}', WRONG, heard.append)
    assert heard == []
    await rejections.drain()
    assert heard == [None]
    [one] = ingest.kept
    refused = one.rejection
    assert (one.device_id, refused.protocol, refused.reason) == (42, "mqtt", "wrong_type")
    assert [(e.loc, e.message) for e in refused.errors] == [("value", "the variable is a number")]
    assert refused.payload == '{"value": "x"}'


async def test_a_refusal_is_small(rejections: Rejections, ingest: FakeIngest) -> None:
    """However long the field is that it names: eighteen of 64 KiB each would not fit in one call."""
    rejections.record(DEVICE, "mqtt", b"{}", invalid("x" * 60_000, "is no field " + "y" * 60_000))
    await rejections.drain()
    assert ingest.kept[0].ByteSize() < 2_000


async def test_many_are_counted(rejections: Rejections, ingest: FakeIngest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten a second and device are kept; none of those over a rate limit; others are not touched by it."""
    monkeypatch.setattr("time.monotonic", lambda: 1.0)
    for _ in range(MOST_A_SECOND + 30):
        rejections.record(DEVICE, "http", b"{}", WRONG)
    rejections.record(OTHER, "http", b"{}", AemosError(Kind.BUSY, "too many"))
    rejections.record(OTHER, "http", b"{}", WRONG)
    await rejections.drain()
    assert [one.device_id for one in ingest.kept] == [42] * MOST_A_SECOND + [43]
    assert (ingest.counted(DEVICE), ingest.counted(OTHER)) == (30, 1)


async def test_what_may_succeed_later_is_no_refusal(rejections: Rejections, ingest: FakeIngest) -> None:
    """The device sends it again."""
    rejections.record(DEVICE, "http", b"{}", unavailable("ingest is away"))
    await rejections.drain()
    assert ingest.requests == []


async def test_what_could_not_be_recorded_is_counted_later(rejections: Rejections, ingest: FakeIngest) -> None:
    """Unless somebody waits for it: whoever does is told, and the device sends again."""
    ingest.broken = unavailable("away")
    heard: list[Any] = []
    rejections.record(DEVICE, "http", b"{}", WRONG)
    rejections.record(DEVICE, "mqtt", b"{}", WRONG, heard.append)
    await rejections.drain()
    assert heard == [ingest.broken]
    ingest.broken = None
    rejections.record(OTHER, "http", b"{}", WRONG)
    await rejections.drain()
    assert (len(ingest.kept), ingest.counted(DEVICE)) == (1, 1)


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        (b"\xff\x00", "\ufffd\ufffd"),
        (b"x" * 10_000, "x" * 200),
        (b'{"token": "0123456789abcdefghijABCDEFGHIJ_-"}', '{"token": "(a token?)"}'),
        (b"a" * 190 + b" 0123456789abcdefghijABCDEFGHIJ_-", "a" * 190 + " (a token?"),
        (b'{"u": "0f8fad5b-d9cb-469f-a165-70867728950e"}', '{"u": "0f8fad5b-d9cb-469f-a165-70867728950e"}'),
    ],
)
def test_the_beginning_of_a_message(payload: bytes, shown: str) -> None:
    """200 characters that are text, whatever was sent; never a token."""
    assert beginning(payload) == shown
