"""What a device hears over MQTT: its own, no more than it takes."""

import asyncio

from aemos_gateway.mqtt_connection import Hold
from aemos_gateway.mqtt_hearing import MOST_UNACKNOWLEDGED

from tests.support.fake_mqtt_ports import (
    ACCEPTED,
    OTHER_TOKEN,
    OTHER_UUID,
    Raw,
    connect,
    listening,
    own,
    packet,
    string,
    suback,
    subscribe,
    world,
)


async def test_notifications_reach_only_the_device_that_subscribed() -> None:
    """At the granted QoS; not after UNSUBSCRIBE."""
    async with world() as it, listening(it, own("notifications"), qos=1) as hears:
        deaf = await Raw.connected(it)
        other = await Raw.connected(it, connect_with=connect(OTHER_TOKEN, uuid=OTHER_UUID))
        assert it.notify(b'{"a":1}') == 1
        assert await hears.receive() == (0x32, string(own("notifications")) + b"\0\1" + b'{"a":1}')
        hears.send(b"\x40\x02\0\1", packet(0xA2, b"\0\5" + string(own("notifications"))))
        assert await hears.receive() == (0xB0, b"\0\5")
        assert it.notify(b"{}") == 0
        for raw in (hears, deaf, other):
            assert await raw.alive()


async def test_unacknowledged_notifications_are_bounded() -> None:
    """A window of QoS 1; what comes beyond it is dropped, and a PUBACK makes room."""
    async with world() as it, listening(it, own("notifications"), qos=1) as hears:
        for _ in range(MOST_UNACKNOWLEDGED + 10):
            it.notify(b"{}")
        numbers = [(await hears.receive() or (0, b""))[1][-4:-2] for _ in range(MOST_UNACKNOWLEDGED)]
        assert len(set(numbers)) == MOST_UNACKNOWLEDGED
        assert await hears.alive()
        hears.send(b"\x40\x02" + numbers[0])
        assert await hears.alive()
        it.notify(b"[]")
        assert (await hears.receive() or (0, b""))[1].endswith(b"[]")


async def test_a_device_that_does_not_read_is_bounded() -> None:
    """What it does not take is dropped, and it is not read from: it cannot make us hold more for it."""
    async with world() as it, listening(it, own("notifications")):
        for _ in range(2000):
            it.notify(b"x" * 10_000)
            await asyncio.sleep(0)
            if it.held(Hold.WRITING):
                break
        assert it.held(Hold.WRITING)


async def test_a_kept_session_goes_on() -> None:
    """Its subscriptions stay, and what it did not acknowledge comes again with DUP; a clean one knows nothing."""
    topic = string(own("notifications"))
    async with world() as it:
        first = await Raw.connected(it, subscribe((own("notifications"), 1)), connect_with=connect(clean=False))
        assert await first.receive() == suback(1)
        it.notify(b"{}")
        assert await first.receive() == (0x32, topic + b"\0\1{}")
        first.close()
        second = await Raw.open(it, connect(clean=False))
        assert [await second.receive() for _ in range(2)] == [(0x20, b"\1\0"), (0x3A, topic + b"\0\1{}")]
        assert it.notify(b"[]") == 1
        assert await second.receive() == (0x32, topic + b"\0\2[]")
        for clean in (True, False):
            third = await Raw.open(it, connect(clean=clean))
            assert await third.receive() == ACCEPTED
            assert it.notify(b"") == 0
            assert await third.alive()
