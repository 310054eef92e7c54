"""Which device a token proves: asked of ingest once, and of many tokens at once."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from aemos.v1 import identity_pb2 as pb
from aemos_core.errors import AemosError, Kind
from aemos_gateway.device_auth import DeviceAuth


class FakeIdentity:
    """Knows the tokens b"1", b"2" and so on up to a number, each of the device of that id."""

    def __init__(self, devices: int) -> None:
        self._by_digest = {hashlib.sha256(b"%d" % n).digest(): n for n in range(1, devices + 1)}
        self.asked: list[int] = []

    async def ResolveDeviceTokens(self, request: pb.ResolveDeviceTokensRequest) -> pb.ResolveDeviceTokensResponse:
        self.asked.append(len(request.token_sha256))
        await asyncio.sleep(0)
        ids = [self._by_digest.get(digest, 0) for digest in request.token_sha256]
        return pb.ResolveDeviceTokensResponse(devices=[pb.DeviceIdentity(token_id=n, device_id=n) for n in ids])


async def test_devices_that_come_at_once_are_asked_about_together() -> None:
    """A thousand unseen tokens cost few calls, each gets its own device, and none is asked about again."""
    identity = FakeIdentity(1_000)
    auth = DeviceAuth(identity)  # type: ignore[arg-type]
    tokens = [b"%d" % n for n in range(1, 1_001)]
    found = await asyncio.gather(*map(auth.resolve, [*tokens, tokens[0]]))
    assert [device.device_id for device in found] == [*range(1, 1_001), 1]
    assert len(identity.asked) <= 3
    calls = len(identity.asked)
    assert (await auth.resolve(b"7")).device_id == 7
    assert len(identity.asked) == calls


async def test_a_wrong_token_among_good_ones_is_refused_alone() -> None:
    """And remembered for a while, so that it costs no call each time."""
    identity = FakeIdentity(2)
    auth = DeviceAuth(identity)  # type: ignore[arg-type]
    good, bad, fine = await asyncio.gather(*map(auth.resolve, (b"1", b"x", b"2")), return_exceptions=True)
    assert (good.device_id, fine.device_id) == (1, 2)  # type: ignore[union-attr]
    assert isinstance(bad, AemosError)
    assert bad.kind is Kind.UNAUTHENTICATED
    with pytest.raises(AemosError):
        await auth.resolve(b"x")
    assert identity.asked == [3]


@pytest.mark.parametrize("token", [b"", b"x" * 513])
async def test_what_is_no_token_is_not_asked_about(token: bytes) -> None:
    """It is refused here."""
    identity = FakeIdentity(0)
    with pytest.raises(AemosError) as refused:
        await DeviceAuth(identity).resolve(token)  # type: ignore[arg-type]
    assert refused.value.kind is Kind.UNAUTHENTICATED
    assert not identity.asked
