"""What a device hears over MQTT: its own, no more than it takes."""

import asyncio

import pytest
from aemos_gateway import mqtt_sessions
from aemos_gateway.downlink import Downlink
from aemos_gateway.mqtt_connection import Hold
from aemos_gateway.mqtt_device import MOST_UNSAVED
from aemos_gateway.mqtt_hearing import MOST_UNACKNOWLEDGED

from tests.support.fake_mqtt_ports import (
    ACCEPTED,
    DEADLINE_S,
    OTHER_TOKEN,
    OTHER_UUID,
    UUID,
    FakeLog,
    Raw,
    connect,
    listening,
    own,
    packet,
    publish,
    string,
    suback,
    subscribe,
    world,
)
from tests.support.redis_server import until

PRESENT = (0x20, b"\1\0")
PUBACK = b"\x40\x02"


def heard(number: int, packet_id: int, *, dup: bool = False) -> tuple[int, bytes]:
    """The PUBLISH of a notification of `FakeLog`."""
    body = b'{"number":%d,"id":"1-%d"}' % (number, number)
    return 0x3A if dup else 0x32, string(own("notifications")) + packet_id.to_bytes(2) + body


async def test_notifications_reach_only_the_device_that_subscribed() -> None:
    """At the granted QoS; not after UNSUBSCRIBE."""
    async with world() as it, listening(it, own("notifications"), qos=1) as hears:
        deaf = await Raw.connected(it)
        other = await Raw.connected(it, connect_with=connect(OTHER_TOKEN, uuid=OTHER_UUID))
        assert it.notify(b'{"a":1}') == 1
        assert await hears.receive() == (0x32, string(own("notifications")) + b"\x80\0" + b'{"a":1}')
        hears.send(b"\x40\x02\x80\0", packet(0xA2, b"\0\5" + string(own("notifications"))))
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
    """Its subscriptions stay, and what it did not acknowledge comes again, with its packet id and DUP, then what it
    missed, then what is live; a clean one knows nothing. So it is on another gateway, and after a kill of this one."""
    log = FakeLog(Downlink())
    async with world(log=log) as it:
        first = await Raw.connected(it, subscribe((own("notifications"), 1)), connect_with=connect(clean=False))
        assert await first.receive() == suback(1)
        for number in (1, 2):
            log.publish(number)
            assert await first.receive() == heard(number, number)
        first.send(PUBACK + b"\0\1")
        assert await first.alive()
        first.close()
    async with world(log=log) as it:
        log.publish(3)
        log.publish(4, OTHER_UUID)
        second = await Raw.open(it, connect(clean=False))
        expected = [PRESENT, heard(2, 2, dup=True), heard(3, 3, dup=True)]
        assert [await second.receive() for _ in range(3)] == expected
        await until(lambda: len(it.downlink.of(UUID)) == 1, DEADLINE_S)
        second.send(PUBACK + b"\0\2", PUBACK + b"\0\3")
        assert await second.alive()
        log.publish(5)
        assert await second.receive() == heard(5, 4)
        for clean in (True, False):
            third = await Raw.open(it, connect(clean=clean))
            assert await third.receive() == ACCEPTED
            log.publish(6)
            assert await third.alive()


async def test_who_acknowledges_slowly_loses_nothing() -> None:
    """More notifications than the window come from the log as PUBACKs make room: each once, in order, then live; out of
    order PUBACKs acknowledge no more than they say."""
    count = 5 * MOST_UNACKNOWLEDGED
    async with world() as it:
        hears = await Raw.connected(it, subscribe((own("notifications"), 1)), connect_with=connect(clean=False))
        assert await hears.receive() == suback(1)
        for number in range(1, count + 1):
            it.log.publish(number)
        found = []
        while len(found) < count:
            some = [await hears.receive() for _ in range(min(MOST_UNACKNOWLEDGED // 2, count - len(found)))]
            found += some
            for packet_ in reversed(some):
                assert packet_ is not None
                hears.send(PUBACK + packet_[1][len(string(own("notifications"))) :][:2])
        assert found == [heard(number, number) for number in range(1, count + 1)]
        assert await hears.alive()
        it.log.publish(count + 1)
        assert await hears.receive() == heard(count + 1, count + 1)
        assert await hears.alive()
        (kept,) = it.log.sessions.values()
        assert (kept.place, kept.number) == (f"1-{count}", count + 1)
        assert it.log.saves < count


async def test_a_subscription_is_acknowledged_when_it_is_kept() -> None:
    """While Redis is away there is no SUBACK; readings are taken all the same, and afterwards all is well."""
    async with world() as it:
        device = await Raw.connected(it, connect_with=connect(clean=False))
        await until(lambda: it.log.saves == 1, DEADLINE_S)
        it.log.away = True
        device.send(subscribe((own("notifications"), 1)), publish())
        assert await device.receive() == (0x40, b"\0\1")
        assert await device.alive()
        it.log.away = False
        assert await device.receive() == suback(1)
        (kept,) = it.log.sessions.values()
        assert kept.topics == {own("notifications"): 1}


async def test_subscriptions_that_wait_for_redis_are_bounded() -> None:
    """So many may wait for their answer; what else the device sent is read when Redis is back."""
    many = [subscribe((own("errors"), 0), number=number) for number in range(1, 2 * MOST_UNSAVED)]
    async with world() as it:
        device = await Raw.connected(it, connect_with=connect(clean=False))
        await until(lambda: it.log.saves == 1, DEADLINE_S)
        it.log.away = True
        device.send(*many, publish())
        await until(lambda: it.held(Hold.SAVING), DEADLINE_S)
        it.log.away = False
        answers = [await device.receive() for _ in range(len(many) + 1)]
        assert answers.count((0x40, b"\0\1")) == 1
        answers.remove((0x40, b"\0\1"))
        assert answers == [(0x90, number.to_bytes(2) + b"\0") for number in range(1, 2 * MOST_UNSAVED)]


async def test_a_session_that_cannot_be_read_is_not_lost() -> None:
    """Connected without Redis, a device may send; when Redis is back it is asked to connect again, and goes on. What
    it subscribes to meanwhile is not acknowledged, for the session that is read then does not know of it."""
    log = FakeLog(Downlink())
    async with world(log=log) as it:
        first = await Raw.connected(it, subscribe((own("notifications"), 1)), connect_with=connect(clean=False))
        assert await first.receive() == suback(1)
        first.close()
        await until(lambda: it.count == 0, DEADLINE_S)
    log.publish(1)
    log.away = True
    async with world(log=log) as it:
        device = await Raw.connected(it, publish(), connect_with=connect(clean=False))
        assert await device.receive() == (0x40, b"\0\1")
        device.send(subscribe((own("errors"), 1)))
        assert await device.alive()
        log.away = False
        assert await device.rest() == []
        again = await Raw.open(it, connect(clean=False))
        assert [await again.receive() for _ in range(2)] == [PRESENT, heard(1, 1, dup=True)]


async def test_a_log_that_does_not_answer_is_read_when_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis goes away while a session catches up: readings are taken meanwhile, and nothing is missed or repeated."""
    monkeypatch.setattr(mqtt_sessions, "_AGAIN_SECONDS", 0.05)
    log = FakeLog(Downlink())
    async with world(log=log) as it:
        device = await Raw.connected(it, subscribe((own("notifications"), 1)), connect_with=connect(clean=False))
        assert await device.receive() == suback(1)
        device.close()
        await until(lambda: it.count == 0, DEADLINE_S)
        log.publish(1)
        log.answering.clear()
        again = await Raw.open(it, connect(clean=False))
        assert await again.receive() == PRESENT
        log.away = True
        log.answering.set()
        log.publish(2)
        again.send(publish())
        assert await again.receive() == (0x40, b"\0\1")
        assert await again.alive()
        log.away = False
        assert [await again.receive() for _ in range(2)] == [heard(1, 1, dup=True), heard(2, 2, dup=True)]
        log.publish(3)
        again.send(PUBACK + b"\0\1", PUBACK + b"\0\2")
        assert await again.receive() == heard(3, 3)


async def test_many_sessions_behind_read_the_log_together() -> None:
    """A hundred that come back at once cost a few pages, not a hundred times the log."""
    log = FakeLog(Downlink())
    async with world(log=log) as it:
        for n in range(100):
            raw = await Raw.connected(
                it, subscribe((own("notifications"), 1)), connect_with=connect(clean=False, client=f"c{n}")
            )
            assert await raw.receive() == suback(1)
            raw.close()
        await until(lambda: it.count == 0, DEADLINE_S)
    for number in range(1, 1_001):
        log.publish(number, UUID if number % 100 == 0 else OTHER_UUID)
    async with world(log=log) as it:
        log.answering.clear()
        raws = [await Raw.open(it, connect(clean=False, client=f"c{n}")) for n in range(100)]
        await until(lambda: len(it.downlink.of(UUID)) == 100, DEADLINE_S)
        log.answering.set()
        for raw in raws:
            assert await raw.receive() == PRESENT
            assert [await raw.receive() for _ in range(10)] == [heard(100 * n, n, dup=True) for n in range(1, 11)]
        assert log.pages < 10
