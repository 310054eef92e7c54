"""What a gateway reports of its devices, and how often."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from aemos.v1 import connectivity_pb2 as pb
from aemos_core.errors import AemosError, unavailable
from aemos_gateway import presence as module
from aemos_gateway.presence import AGAIN_SECONDS, RENEW_SECONDS, Presence
from aemos_ingest.connectivity import LEASE_SECONDS


class FakeIngest:
    """Takes every report, or none while `broken`."""

    def __init__(self) -> None:
        self.reports: list[pb.ReportConnectionsRequest] = []
        self.broken: AemosError | None = None

    async def ReportConnections(
        self, request: pb.ReportConnectionsRequest, timeout: float
    ) -> pb.ReportConnectionsResponse:
        assert RENEW_SECONDS + timeout + AGAIN_SECONDS < LEASE_SECONDS
        if self.broken is not None:
            raise self.broken
        self.reports.append(request)
        return pb.ReportConnectionsResponse(is_new=len(self.reports) == 1)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    at = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: at[0])
    return at


async def test_a_device_that_goes_on_sending_is_told_of_now_and_then(now: list[float]) -> None:
    """At once when it is new or was silent, else every 30 s, so it is online for 5 minutes from its last reading."""
    ingest = FakeIngest()
    presence = Presence(ingest)  # type: ignore[arg-type]
    heard_at = []
    for second in range(1000, 1100):
        now[0] = float(second)
        presence.heard(42)
        await presence.report()
        if list(ingest.reports[-1].heard) == [42]:
            heard_at.append(second)
        assert len(ingest.reports[-1].heard) <= 1
    assert heard_at[0] == 1000
    gaps = [later - sooner for sooner, later in pairwise(heard_at)]
    assert gaps
    assert all(30 <= gap <= 30 + 2 * RENEW_SECONDS for gap in gaps)
    assert ingest.reports[0].heard_for_ms == 330_000
    now[0] += 400
    presence.heard(42)
    await presence.report()
    assert list(ingest.reports[-1].heard) == [42]


async def test_after_a_report_that_failed_the_next_is_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the lease would end, and all devices of this gateway be told offline, because one report hung."""
    ingest, waits, stop = FakeIngest(), [], asyncio.Event()
    ingest.broken = unavailable("away")

    async def wait(stop: asyncio.Event, seconds: float, *_: asyncio.Event) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            ingest.broken = None
        if len(waits) == 4:
            stop.set()

    monkeypatch.setattr(module, "wait", wait)
    await Presence(ingest).run(stop)  # type: ignore[arg-type]
    assert waits == [AGAIN_SECONDS, AGAIN_SECONDS, RENEW_SECONDS, RENEW_SECONDS]


async def test_a_thousand_at_a_time(now: list[float]) -> None:
    """The others follow at once."""
    ingest = FakeIngest()
    presence = Presence(ingest)  # type: ignore[arg-type]
    for device_id in range(2_500):
        presence.came(device_id)
        presence.heard(10_000 + device_id)
    for _ in range(3):
        await presence.report()
    assert [len(report.connected) for report in ingest.reports] == [1000, 1000, 500]
    assert [len(report.heard) for report in ingest.reports] == [1000, 1000, 500]
    await presence.report()
    assert not ingest.reports[-1].connected
    assert not ingest.reports[-1].heard


async def test_what_was_not_taken_is_reported_again(now: list[float]) -> None:
    """As it is by then."""
    ingest = FakeIngest()
    presence = Presence(ingest)  # type: ignore[arg-type]
    presence.came(1)
    presence.came(2)
    presence.heard(3)
    ingest.broken = unavailable("away")
    with pytest.raises(AemosError):
        await presence.report()
    ingest.broken = None
    presence.went(2)
    await presence.report()
    report = ingest.reports[0]
    assert (list(report.connected), list(report.disconnected), list(report.heard)) == ([1], [2], [3])


async def test_an_answer_that_is_lost_may_have_said_that_the_lease_is_new(now: list[float]) -> None:
    """Ingest forgot the devices of the lease before: all of them are reported again."""
    ingest = FakeIngest()
    presence = Presence(ingest)  # type: ignore[arg-type]
    presence.came(1)
    await presence.report()
    ingest.broken = unavailable("late")
    with pytest.raises(AemosError):
        await presence.report()
    ingest.broken = None
    await presence.report()
    assert [list(report.connected) for report in ingest.reports] == [[1], [1]]
