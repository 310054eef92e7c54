"""No webhook reaches into the network that AEMOS runs in."""

from __future__ import annotations

import httpx
import pytest
from aemos_core.errors import AemosError
from aemos_notify.channels import Failed, Letter, WebhookChannel, open_webhooks
from aemos_notify.public_net import NotPublic, PublicNet, networks
from aemos_notify.templates import Message

INSIDE = (
    "127.0.0.1",
    "localhost",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "2130706433",
    "0x7f000001",
    "017700000001",
    "[::1]",
    "[::]",
    "[fe80::1]",
    "[fc00::1]",
    "[::ffff:10.0.0.1]",
    "[64:ff9b::a00:1]",
    "[2002:a00:1::]",
)


@pytest.mark.parametrize("host", INSIDE)
async def test_addresses_inside_are_refused(host: str) -> None:
    """However they are spelled: when the subscription is saved, and when it is used."""
    net = PublicNet()
    with pytest.raises(NotPublic):
        await net.addresses(host, 80)
    async with open_webhooks(net) as channel:
        with pytest.raises(AemosError) as refused:
            await channel.check_target(f"http://{host}/hook")
        assert refused.value.reason == "not_public"
        with pytest.raises(Failed, match="not public"):
            await channel.send(Letter("msg_1", f"http://{host}/hook", Message("", "{}"), ["whsec_c2VjcmV0"]))


async def test_public_addresses_are_taken() -> None:
    """And what the operator allows."""
    assert await PublicNet().addresses("8.8.8.8", 443) == ["8.8.8.8"]
    assert await PublicNet().addresses("[2606:4700::1111]", 443) == ["2606:4700::1111"]
    assert await PublicNet(networks(["127.0.0.0/8"])).addresses("127.0.0.1", 80) == ["127.0.0.1"]


@pytest.mark.parametrize("target", ["http://user:pw@8.8.8.8/", "http:///path"])
async def test_odd_urls_are_refused(target: str) -> None:
    """A user in a URL would end up in logs."""
    async with httpx.AsyncClient() as client:
        with pytest.raises(AemosError):
            await WebhookChannel(client, PublicNet()).check_target(target)


def test_the_library_still_has_the_place_of_the_override() -> None:
    """`_pool._network_backend` is what httpcore connects by."""
    transport = PublicNet().transport()
    assert type(transport._pool._network_backend).__name__ == "_Backend"
    assert hasattr(httpx.AsyncHTTPTransport()._pool, "_network_backend")
