"""Readings over MQTT: stored once, acknowledged once stored, refused by the error table."""

import json

import pytest
from aemos_core.errors import AemosError, Kind, internal, unavailable
from aemos_gateway.mqtt_connection import Hold
from aemos_gateway.mqtt_device import Limits
from aemos_gateway.mqtt_telemetry import MOST_IN_FLIGHT, MOST_UNRELEASED

from tests.support.fake_mqtt_ports import (
    DEADLINE_S,
    READING,
    UUID,
    Raw,
    connect,
    listening,
    own,
    publish,
    string,
    world,
)
from tests.support.redis_server import until

PUBACK_1 = (0x40, b"\0\1")


async def test_puback_follows_the_commit() -> None:
    """Nothing is acknowledged before it is stored; a batch's acknowledgements come in their order."""
    async with world() as it:
        it.uplink.holding = True
        device = await Raw.connected(it, *(publish(number=n) for n in (1, 2, 3)))
        await until(lambda: len(it.uplink.waiting) == 3, DEADLINE_S)
        assert await device.alive()
        it.uplink.commit()
        assert [await device.receive() for _ in range(3)] == [(0x40, bytes([0, n])) for n in (1, 2, 3)]


async def test_qos_0_is_stored_and_not_answered() -> None:
    """Retain means nothing for a reading."""
    async with world() as it:
        device = await Raw.connected(it, publish(qos=0), publish(qos=0, flags=1))
        assert await device.alive()
        assert it.uplink.stored == [READING, READING]


async def test_qos_2_is_stored_once() -> None:
    """PUBREC after the commit; a repeated PUBLISH before PUBREL is answered but not stored, behind it is a new one."""
    pubrec, pubrel, pubcomp = (0x50, b"\0\1"), b"\x62\x02\0\1", (0x70, b"\0\1")
    async with world() as it:
        device = await Raw.connected(it, publish(qos=2), publish(qos=2, flags=8))
        assert [await device.receive() for _ in range(2)] == [pubrec, pubrec]
        device.send(publish(qos=2, flags=8))
        assert await device.receive() == pubrec
        device.send(pubrel, pubrel, publish(qos=2))
        assert [await device.receive() for _ in range(3)] == [pubcomp, pubcomp, pubrec]
        assert len(it.uplink.stored) == 2


async def test_qos_2_is_stored_once_over_a_lost_connection() -> None:
    """A kept session knows what it took, even when the commit came after its connection was gone, and for long."""
    async with world() as it:
        it.uplink.holding = True
        device = await Raw.connected(it, publish(qos=2), connect_with=connect(clean=False))
        await until(lambda: len(it.uplink.waiting) == 1, DEADLINE_S)
        device.close()
        again = await Raw.open(it, connect(clean=False))
        assert await again.receive() == (0x20, b"\1\0")
        again.send(publish(qos=2, flags=8))
        assert await again.alive()
        it.uplink.commit()
        assert await again.receive() == (0x50, b"\0\1")
        it.uplink.known.clear()
        third = await Raw.open(it, connect(clean=False), publish(qos=2, flags=8))
        assert [await third.receive() for _ in range(2)] == [(0x20, b"\1\0"), (0x50, b"\0\1")]
        assert len(it.uplink.stored) == 1


async def test_qos_2_asked_about_on_a_new_connection_is_owed_there() -> None:
    """Its first PUBLISH fails when the connection is gone; the new one is closed, so that the device sends again."""
    async with world(Limits(resend_s=0.3)) as it:
        it.uplink.holding = True
        it.uplink.refusal = lambda _: unavailable("ingest is down")
        device = await Raw.connected(it, publish(qos=2), connect_with=connect(clean=False))
        await until(lambda: len(it.uplink.waiting) == 1, DEADLINE_S)
        again = await Raw.open(it, connect(clean=False), publish(qos=2, flags=8))
        assert await again.receive() == (0x20, b"\1\0")
        assert await device.rest() == []
        assert await again.alive()
        it.uplink.commit()
        assert await again.rest() == []


@pytest.mark.parametrize("flags", [0, 8], ids=["new", "DUP"])
async def test_qos_2_another_reading_under_an_id_that_was_not_released_is_stored(flags: int) -> None:
    """A device that lost its memory, or was with another gateway meanwhile, uses the id anew: none is lost."""
    other = READING.replace(b"25.5", b"26")
    async with world() as it:
        device = await Raw.connected(it, publish(qos=2), connect_with=connect(clean=False))
        assert await device.receive() == (0x50, b"\0\1")
        device.close()
        again = await Raw.open(it, connect(clean=False), publish(other, qos=2, flags=flags))
        assert [await again.receive() for _ in range(2)] == [(0x20, b"\1\0"), (0x50, b"\0\1")]
        again.send(publish(other, qos=2))
        assert await again.receive() == (0x50, b"\0\1")
        assert it.uplink.stored == [READING, other, other]


async def test_qos_2_a_session_that_went_elsewhere_is_not_remembered() -> None:
    """Its PUBREL went there, so what was taken here says nothing about what comes now."""
    async with world() as it:
        device = await Raw.connected(it, publish(qos=2), connect_with=connect(clean=False))
        assert await device.receive() == (0x50, b"\0\1")
        it.edge.taken(f"another {UUID}/c1".encode())
        assert await device.rest() == []
        it.uplink.known.clear()
        again = await Raw.open(it, connect(clean=False), publish(qos=2, flags=8))
        assert (await again.receive() or (0, b""))[0] == 0x20
        assert await again.receive() == (0x50, b"\0\1")
        assert it.uplink.stored == [READING, READING]


async def test_qos_2_a_client_that_never_releases_is_bounded() -> None:
    """Of its packet ids the newest are known; about the others ingest is asked."""
    async with world() as it:
        device = await Raw.connected(it)
        for number in range(1, MOST_UNRELEASED + 2):
            device.send(publish(qos=2, number=number))
            assert await device.receive() == (0x50, number.to_bytes(2))
        for number, attempts in ((MOST_UNRELEASED + 1, MOST_UNRELEASED + 1), (1, MOST_UNRELEASED + 2)):
            device.send(publish(qos=2, number=number, flags=8))
            assert await device.receive() == (0x50, number.to_bytes(2))
            assert it.uplink.attempts == attempts


EXPLAINED: dict[str, tuple[bytes, AemosError | None, dict[str, object]]] = {
    "no JSON": (b"25.5 C\xff", None, {"reason": "malformed", "errors": [], "payload": "25.5 C\ufffd"}),
    "a field": (
        b'{"value": 1, "variableName": ""}',
        None,
        {"reason": "invalid", "errors": [{"loc": "variableName", "message": "Expected str of length >= 1"}]},
    ),
    "over 64 KiB": (b'"' + b"x" * 70_000, None, {"reason": "too_large", "payload": '"' + "x" * 199}),
    "ingest's word": (READING, AemosError(Kind.INVALID, "no such variable", reason="unknown"), {"reason": "unknown"}),
}


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize(("payload", "error", "expected"), EXPLAINED.values(), ids=EXPLAINED.keys())
async def test_a_refused_reading_is_acknowledged_and_explained(
    payload: bytes, error: AemosError | None, expected: dict[str, object], qos: int
) -> None:
    """On the errors topic, to every session of the device that hears it; the connection is kept."""
    async with world() as it, listening(it, own("errors")) as listener:
        it.uplink.refusal = lambda _: error
        device = await Raw.connected(it, publish(payload, qos=qos))
        if qos:
            assert await device.receive() == ((0x40, b"\0\1") if qos == 1 else (0x50, b"\0\1"))
        header, body = await listener.receive() or (0, b"")
        assert (header, body[: len(string(own("errors")))]) == (0x30, string(own("errors")))
        explained = json.loads(body[len(string(own("errors"))) :])
        assert explained | expected == explained
        assert set(explained) == {"reason", "detail", "errors", "payload"}
        assert await device.alive()
        assert it.uplink.stored == []
        [refused] = it.uplink.refused.all
        assert (refused.protocol, refused.payload, refused.reason) == ("mqtt", payload, expected["reason"])


async def test_puback_of_a_refused_reading_follows_its_record() -> None:
    """Nothing refused is silent: who asks later finds it, whatever dies in between."""
    async with world() as it, listening(it, own("errors")) as listener:
        it.uplink.refused.holding = True
        device = await Raw.connected(it, publish(b"{"))
        await until(lambda: len(it.uplink.refused.all) == 1, DEADLINE_S)
        assert await device.alive()
        assert await listener.alive()
        it.uplink.refused.release()
        assert await device.receive() == PUBACK_1
        assert b"malformed" in (await listener.receive() or (0, b""))[1]


async def test_a_refusal_that_is_not_recorded_is_not_acknowledged() -> None:
    """The device sends again, and is refused again."""
    async with world(Limits(resend_s=0.3)) as it:
        it.uplink.refused.broken = unavailable("ingest is down")
        device = await Raw.connected(it, publish(b"{"))
        assert await device.rest() == []
        again = await Raw.connected(it)
        it.uplink.refused.broken = None
        again.send(publish(b"{", flags=8))
        assert await again.receive() == PUBACK_1


@pytest.mark.parametrize("error", [unavailable("ingest is down"), internal()], ids=["unavailable", "internal"])
@pytest.mark.parametrize("qos", [1, 2])
async def test_what_may_not_be_stored_is_not_acknowledged(error: AemosError, qos: int) -> None:
    """The connection is kept for a while and then closed, since only then a device sends again."""
    async with world(Limits(resend_s=0.3)) as it:
        it.uplink.refusal = lambda _: error
        device = await Raw.connected(it, publish(qos=qos), connect_with=connect(clean=False))
        assert await device.alive()
        assert await device.rest() == []
        it.uplink.refusal = lambda _: None
        again = await Raw.open(it, connect(clean=False), publish(qos=qos, flags=8))
        assert await again.receive() == (0x20, b"\1\0")
        assert await again.receive() == ((0x40, b"\0\1") if qos == 1 else (0x50, b"\0\1"))
        assert len(it.uplink.stored) == 1


@pytest.mark.parametrize("kind", [Kind.UNAUTHENTICATED, Kind.FORBIDDEN, Kind.NOT_FOUND])
async def test_a_write_that_is_not_allowed_closes(kind: Kind) -> None:
    """The token was revoked, or the sensor is not the device's."""
    async with world() as it:
        it.uplink.refusal = lambda _: AemosError(kind, "no")
        assert await (await Raw.connected(it, publish())).rest() == []


@pytest.mark.parametrize("error", [AemosError(Kind.BUSY, "too fast"), unavailable("the queue is full")])
async def test_what_put_refuses_for_now_is_tried_again_and_read_more_slowly(error: AemosError) -> None:
    """The PUBACK comes late; what is sent meanwhile is not read."""
    async with world() as it:
        it.uplink.full = error
        device = await Raw.connected(it, publish())
        await until(lambda: it.held(Hold.BUSY), DEADLINE_S)
        device.send(publish(number=2))
        it.uplink.full = None
        assert await device.receive() == PUBACK_1
        assert await device.receive() == (0x40, b"\0\2")
        assert len(it.uplink.stored) == 2


async def test_a_flood_over_the_limit_is_neither_asked_about_again_and_again_nor_mixed_up() -> None:
    """What came in one piece with the refused one waits behind it: one attempt a second, in the order sent."""
    sent = [b'{"value": %d, "variableName": "temperature"}' % number for number in range(300)]
    async with world() as it:
        it.uplink.full = AemosError(Kind.BUSY, "too fast")
        chunk = b"".join(publish(payload, number=number) for number, payload in enumerate(sent, 1))
        device = await Raw.connected(it, chunk)
        await until(lambda: it.held(Hold.BUSY), DEADLINE_S)
        assert it.uplink.attempts == 1
        it.uplink.full = None
        for number in range(1, len(sent) + 1):
            assert await device.receive() == (0x40, number.to_bytes(2))
        assert it.uplink.stored == sent
        assert it.uplink.attempts == len(sent) + 1


async def test_a_busy_ingest_is_asked_again() -> None:
    """BUSY says that nothing was stored, so the same reading may be written again, once."""
    async with world() as it:
        answers = [AemosError(Kind.BUSY, "too fast")]
        it.uplink.refusal = lambda _: answers.pop() if answers else None
        device = await Raw.connected(it, publish(qos=2))
        assert await device.receive() == (0x50, b"\0\1")
        assert it.uplink.stored == [READING]


async def test_no_more_than_a_window_is_in_flight() -> None:
    """Above it nothing is read; what was sent meanwhile is stored when half of it is answered."""
    chunk = b"".join(publish(READING + b" " * 3000, number=n % 60_000 + 1) for n in range(3000))
    async with world() as it:
        it.uplink.holding = True
        device = await Raw.connected(it, chunk)
        await until(lambda: it.held(Hold.WINDOW), DEADLINE_S)
        assert it.uplink.most_waiting == MOST_IN_FLIGHT + 1
        it.uplink.holding = False
        it.uplink.commit()
        for _ in range(3000):
            assert (await device.receive() or (0, b""))[0] == 0x40
