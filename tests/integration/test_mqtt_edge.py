"""The MQTT edge over real sockets: raw bytes for the hard cases, paho and mosquitto for the rest."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import paho.mqtt.client as paho
import pytest
from aemos_core.errors import AemosError, Kind, internal, unavailable
from aemos_core.process import PortInUse
from aemos_gateway.downlink import Downlink
from aemos_gateway.mqtt_edge import Limits, mqtt_edge
from aemos_gateway.mqtt_hearing import MOST_UNACKNOWLEDGED
from aemos_gateway.mqtt_telemetry import MOST_IN_FLIGHT

from tests.support.fake_mqtt_ports import (
    ACCEPTED,
    DEADLINE_S,
    DISCONNECT,
    OTHER_TOKEN,
    OTHER_UUID,
    READING,
    TOKEN,
    UUID,
    FakeAuth,
    FakeUplink,
    Raw,
    World,
    connect,
    own,
    packet,
    publish,
    string,
    subscribe,
    world,
)
from tests.support.redis_server import until

WILL = (own("notifications"), b'{"gone":true}')
WILL_HEARD = (0x30, string(WILL[0]) + WILL[1])
PUBACK_1 = (0x40, b"\0\1")
FOREIGN = f"aemos/devices/{OTHER_UUID}/telemetry"


def suback(*codes: int) -> tuple[int, bytes]:
    """The answer to `subscribe`."""
    return 0x90, b"\0\x09" + bytes(codes)


@asynccontextmanager
async def listening(it: World, *topics: str, qos: int = 0, client: str = "listener") -> AsyncIterator[Raw]:
    """Another connection of the device that hears topics of it."""
    raw = await Raw.connected(it, subscribe(*((t, qos) for t in topics)), connect_with=connect(client=client))
    assert await raw.receive() == suback(*[qos] * len(topics))
    yield raw
    raw.close()


# Hard cases: what is sent at the beginning, and what comes until the connection is closed.

REFUSED_AT_CONNECT = {
    "1 no token": (connect(token=None), 5),
    "1 malformed token": (connect(token=b"\xff\xfe"), 5),
    "1 unknown token": (connect(token="x" * 5000), 5),
    "3 another device's token": (connect(token=OTHER_TOKEN), 5),
    "3 a will on another device's topic": (connect(will=(FOREIGN, b"{}")), 5),
    "8 NUL in the client id": (connect(client="a\0b"), 5),
    "MQTT 5": (connect(level=5), 1),
}
CLOSED_WITHOUT_A_WORD = {
    "6 a CONNECT over 16 KiB": packet(0x10, bytes(16 * 1024 + 1))[:10],
    "6 268 MB announced": b"\x10\xff\xff\xff\x7f",
    "7 HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "8 a length without end": b"\x10\xff\xff\xff\xff\xff",
    "20 PUBLISH before CONNECT": publish(),
}
BROKEN_PROTOCOL = {
    "3 another organization's device": publish(topic=FOREIGN),
    "6 over 1 MiB": b"\x32\x81\x80\x40",
    "6 a SUBSCRIBE over 16 KiB": b"\x82\x81\x80\x01",
    "8 invalid UTF-8 in a topic": publish(topic=b"aemos/devices/\xff/telemetry"),
    "8 NUL in a topic": publish(topic=own("telemetry") + "\0"),
    "8 invalid UTF-8 in a filter": subscribe((b"\xff\xfe", 0)),
    "8 NUL in a filter": subscribe((own("errors") + "\0", 0)),
    "20 wildcard +": publish(topic="aemos/devices/+/telemetry"),
    "20 wildcard #": publish(topic="#"),
    "20 $SYS": publish(topic="$SYS/broker"),
    "20 empty topic": publish(topic=""),
    "20 own, but not telemetry": publish(topic=own("notifications")),
    "20 QoS 3": publish(qos=3),
    "20 packet id 0": publish(number=0),
    "20 packet id 0, QoS 2": publish(qos=2, number=0),
    "20 no packet id": packet(0x32, string(own("telemetry"))),
    "20 a topic longer than the packet": packet(0x32, b"\xff\xffaemos"),
    "20 DUP with QoS 0": publish(qos=0, flags=8),
    "20 a second CONNECT": connect(),
    "20 a reserved packet": packet(0xF0, b""),
    "20 a server's packet": packet(0x20, b"\0\0"),
    "20 wrong flags of SUBSCRIBE": packet(0x80, b"\0\1" + string("a") + b"\0"),
    "20 SUBSCRIBE with QoS 3": subscribe((own("errors"), 3)),
    "20 SUBSCRIBE without a filter": subscribe(),
    "20 SUBSCRIBE with packet id 0": subscribe((own("errors"), 0), number=0),
    "20 a fifth byte of length": b"\x32\xff\xff\xff\xff\x01",
}


@pytest.mark.parametrize(("sent", "code"), REFUSED_AT_CONNECT.values(), ids=REFUSED_AT_CONNECT.keys())
async def test_refused_at_connect(sent: bytes, code: int) -> None:
    """CONNACK with its return code, then closed; the session of a live device with that client id is untouched (2)."""
    async with world() as it, listening(it, WILL[0]) as listener:
        live = await Raw.connected(it, connect_with=connect(will=WILL))
        assert await (await Raw.open(it, sent)).rest() == [(0x20, bytes([0, code]))]
        assert await live.alive()
        assert await listener.alive()
        live.close()
        assert await listener.receive() == WILL_HEARD


@pytest.mark.parametrize("sent", CLOSED_WITHOUT_A_WORD.values(), ids=CLOSED_WITHOUT_A_WORD.keys())
async def test_closed_without_a_word(sent: bytes) -> None:
    """What is no CONNECT is not answered."""
    async with world() as it:
        assert await (await Raw.open(it, sent)).rest() == []


@pytest.mark.parametrize("sent", BROKEN_PROTOCOL.values(), ids=BROKEN_PROTOCOL.keys())
async def test_broken_protocol_closes_and_publishes_the_will(sent: bytes) -> None:
    """No PUBACK, nothing stored, nothing behind it is looked at; others go on."""
    async with world() as it, listening(it, WILL[0]) as listener:
        device = await Raw.connected(it, sent, publish(number=7), connect_with=connect(will=WILL))
        assert await device.rest() == []
        assert await listener.receive() == WILL_HEARD
        assert await listener.alive()
        assert it.uplink.stored == []


@pytest.mark.parametrize("sent", [b"", connect()[:-1], b"\x10"], ids=["nothing", "half a CONNECT", "one byte"])
async def test_silence_before_connect_is_closed(sent: bytes) -> None:
    """Case 7, with a shorter patience; others are unaffected."""
    async with world(Limits(connect_s=0.2)) as it:
        live = await Raw.connected(it)
        assert await (await Raw.open(it, sent)).rest() == []
        assert await live.alive()


async def test_same_device_and_client_id_takes_over() -> None:
    """Case 5: the old connection is closed, the new one lives; another client id is another session."""
    async with world() as it:
        other = await Raw.connected(it, connect_with=connect(client="c2"))
        for clean in (True, False, False, True):
            old = await Raw.connected(it, connect_with=connect(clean=clean))
            new = await Raw.open(it, connect(clean=clean))
            assert await old.rest() == []
            assert (await new.receive() or (0, b""))[0] == 0x20
            assert await new.alive()
            assert await other.alive()


async def test_a_client_id_is_the_devices_own() -> None:
    """Another device with the same client id disturbs nobody."""
    async with world() as it:
        first = await Raw.connected(it)
        second = await Raw.connected(it, connect_with=connect(OTHER_TOKEN, uuid=OTHER_UUID))
        assert await first.alive()
        assert await second.alive()


async def test_subscribe_grants_only_the_devices_own_topics() -> None:
    """Case 21: 0x80 for what is foreign or a wildcard, the others granted; QoS 2 is granted as 1."""
    wanted = [(own("notifications"), 2), ("#", 0), (f"aemos/devices/{OTHER_UUID}/errors", 0), (own("+"), 1), ("+", 1)]
    async with world() as it:
        device = await Raw.connected(it, subscribe(*wanted, (own("telemetry"), 0), (own("errors"), 0)))
        assert await device.receive() == suback(1, 0x80, 0x80, 0x80, 0x80, 0x80, 0)
        assert it.notify(b"{}") == 1


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
        device.send(publish(qos=2, flags=8))
        assert [await device.receive() for _ in range(2)] == [pubrec, pubrec]
        device.send(pubrel, pubrel, publish(qos=2))
        assert [await device.receive() for _ in range(3)] == [pubcomp, pubcomp, pubrec]
        assert len(it.uplink.stored) == 2


async def test_qos_2_is_stored_once_over_a_lost_connection() -> None:
    """A kept session knows what it took, even when the commit came after its connection was gone."""
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
        assert len(it.uplink.stored) == 1


EXPLAINED: dict[str, tuple[bytes, AemosError | None, dict[str, object]]] = {
    "no JSON": (b"25.5 C\xff", None, {"reason": "malformed", "errors": [], "payload": "25.5 C\ufffd"}),
    "a field": (
        b'{"value": 1, "variableName": ""}',
        None,
        {"reason": "invalid", "errors": [{"loc": "variableName", "message": "must have 1 to 200 characters"}]},
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
        await until(lambda: it.edge.holds(), DEADLINE_S)
        device.send(publish(number=2))
        it.uplink.full = None
        assert await device.receive() == PUBACK_1
        assert await device.receive() == (0x40, b"\0\2")
        assert len(it.uplink.stored) == 2


async def test_no_more_than_a_window_is_in_flight() -> None:
    """Above it nothing is read; what was sent meanwhile is stored when half of it is answered."""
    chunk = b"".join(publish(READING + b" " * 3000, number=n % 60_000 + 1) for n in range(3000))
    async with world() as it:
        it.uplink.holding = True
        device = await Raw.connected(it, chunk)
        await until(it.edge.holds, DEADLINE_S)
        # One read of the loop (256 KiB) may be under way when the window is full.
        assert MOST_IN_FLIGHT < it.uplink.most_waiting <= MOST_IN_FLIGHT + 256 * 1024 // 3000
        it.uplink.holding = False
        it.uplink.commit()
        for _ in range(3000):
            assert (await device.receive() or (0, b""))[0] == 0x40


async def test_keep_alive_is_enforced() -> None:
    """Closed at 1.5 times, with its will (22); a PINGREQ in time keeps the connection, 0 switches it off."""
    async with world() as it, listening(it, WILL[0]) as listener:
        never = await Raw.connected(it, connect_with=connect(client="never", keep_alive=0))
        silent = await Raw.connected(it, connect_with=connect(client="silent", keep_alive=1, will=WILL))
        alive = await Raw.connected(it, connect_with=connect(client="alive", keep_alive=1))
        began, heard = asyncio.get_running_loop().time(), asyncio.create_task(silent.rest())
        while not heard.done():
            assert await alive.alive()
            await asyncio.wait([heard], timeout=0.5)
        assert 1.4 < asyncio.get_running_loop().time() - began < 2.5
        assert await listener.receive() == WILL_HEARD
        assert await never.alive()


async def test_keep_alive_waits_while_we_do_not_listen() -> None:
    """A device whose PINGREQ we do not read is not silent."""
    async with world() as it:
        it.uplink.full = AemosError(Kind.BUSY, "too fast", retry_after=2)
        device = await Raw.connected(it, publish(), connect_with=connect(keep_alive=1))
        await until(it.edge.holds, DEADLINE_S)
        it.uplink.full = None
        assert await device.receive() == PUBACK_1
        assert await device.alive()


LEAVING: dict[str, tuple[Callable[[Raw], None], bool]] = {
    "DISCONNECT": (lambda raw: raw.send(DISCONNECT), False),
    "DISCONNECT, then closed at once": (lambda raw: (raw.send(DISCONNECT), raw.close())[0], False),
    "closed": (lambda raw: raw.close(), True),
}


@pytest.mark.parametrize(("leave", "willed"), LEAVING.values(), ids=LEAVING.keys())
async def test_the_will_is_for_those_who_do_not_say_good_bye(leave: Callable[[Raw], None], willed: bool) -> None:
    """DISCONNECT discards it."""
    async with world() as it, listening(it, WILL[0]) as listener:
        device = await Raw.connected(it, connect_with=connect(will=WILL))
        leave(device)
        await until(lambda: it.edge.count == 1, DEADLINE_S)
        if willed:
            assert await listener.receive() == WILL_HEARD
        assert await listener.alive()


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
            if it.edge.holds():
                break
        assert it.edge.holds()


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


async def test_packets_behind_connect_wait_for_it() -> None:
    """MQTT 3.1.1, 3.1.4: a client need not wait for CONNACK, and may come in single bytes."""
    async with world() as it:
        device = await Raw.open(it)
        for byte in connect() + publish() + b"\xc0\x00":
            device.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await device.receive() == ACCEPTED
        assert await device.receive() == (0xD0, b"") or await device.receive() == (0xD0, b"")
        assert it.uplink.stored == [READING]


async def test_ingest_unavailable_at_connect_is_connack_3() -> None:
    """The device tries again later; who is connected stays."""
    async with world() as it:
        live = await Raw.connected(it)
        it.auth.broken = unavailable("ingest is down")
        assert await (await Raw.open(it, connect(client="new"))).rest() == [(0x20, b"\0\3")]
        assert await live.alive()


async def test_a_revoked_token_closes_an_idle_connection() -> None:
    """Case 4: within 5 s; not while ingest cannot say whether it was."""
    async with world() as it:
        device = await Raw.connected(it)
        it.auth.broken = unavailable("ingest is down")
        known = it.auth.devices.pop(TOKEN.encode())
        asked = it.auth.asked
        await until(lambda: it.auth.asked > asked, DEADLINE_S)
        assert await device.alive()
        it.auth.devices[TOKEN.encode()], it.auth.broken = known, None
        assert await device.alive()
        del it.auth.devices[TOKEN.encode()]
        assert await device.rest() == []


async def test_an_operator_closes_a_devices_connections() -> None:
    """Those that listen and those that do not."""
    async with world() as it, listening(it, own("notifications")) as hears:
        device = await Raw.connected(it)
        other = await Raw.connected(it, connect_with=connect(OTHER_TOKEN, uuid=OTHER_UUID))
        assert it.edge.disconnect(UUID) == 2
        assert await hears.rest() == []
        assert await device.rest() == []
        assert await other.alive()


async def test_connections_are_counted_and_freed() -> None:
    """One more than the limit is closed at once; each that ends, however it ends, makes room."""
    async with world(Limits(connections=2)) as it:
        for end in (connect(token="wrong"), b"\xff\xff", connect() + publish(topic="#"), connect() + DISCONNECT) * 3:
            raw = await Raw.open(it, end)
            await raw.rest()
            await until(lambda: it.edge.count == 0, DEADLINE_S)
        first, second = await Raw.connected(it), await Raw.connected(it, connect_with=connect(client="c2"))
        assert await (await Raw.open(it, connect(client="c3"))).rest() == []
        assert await first.alive()
        assert await second.alive()


async def test_stopping_waits_for_acknowledgements() -> None:
    """Nothing new is taken, what was taken is answered, then the connection ends without its will."""
    async with world() as it:
        it.uplink.holding = True
        listener = await Raw.connected(it, subscribe((WILL[0], 0)), connect_with=connect(client="listener"))
        assert await listener.receive() == suback(0)
        device = await Raw.connected(it, publish(), connect_with=connect(will=WILL))
        await until(lambda: len(it.uplink.waiting) == 1, DEADLINE_S)
        it.stop.set()
        assert await listener.rest() == []
        it.uplink.commit()
        assert await device.rest() == [PUBACK_1]
        with pytest.raises(OSError, match="refused|failed"):
            await asyncio.open_connection("127.0.0.1", it.edge.port_was)


async def test_a_taken_port_names_its_variable() -> None:
    """Somebody else listens there."""
    async with world() as it:
        edge = mqtt_edge("127.0.0.1", it.edge.port, FakeAuth(), FakeUplink(), Downlink())
        with pytest.raises(PortInUse, match="AEMOS_MQTT_PORT"):
            async with edge:
                pass


# Real clients.


async def mosquitto(program: str, it: World, *arguments: str) -> asyncio.subprocess.Process:
    """mosquitto_pub or mosquitto_sub as the first device."""
    common = ["-h", "127.0.0.1", "-p", str(it.edge.port), "-V", "mqttv311", "-u", UUID, "-P", TOKEN]
    return await asyncio.create_subprocess_exec(
        program, *common, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


async def output(process: asyncio.subprocess.Process) -> tuple[int, bytes, bytes]:
    """Its end."""
    out, err = await asyncio.wait_for(process.communicate(), 2 * DEADLINE_S)
    assert process.returncode is not None
    return process.returncode, out, err


@pytest.mark.parametrize("qos", ["0", "1", "2"])
async def test_mosquitto_pub_stores(qos: str) -> None:
    """With every QoS, and a second time over."""
    async with world() as it:
        arguments = ["-t", own("telemetry"), "-q", qos, "-m", READING.decode(), "--repeat", "3"]
        assert await output(await mosquitto("mosquitto_pub", it, *arguments)) == (0, b"", b"")
        assert it.uplink.stored == [READING] * 3


async def test_mosquitto_sub_hears_and_is_refused_what_is_not_its_own() -> None:
    """Two messages of QoS 1, acknowledged."""
    async with world() as it:
        sub = await mosquitto("mosquitto_sub", it, "-t", own("notifications"), "-t", "#", "-q", "1", "-C", "2")
        await until(lambda: bool(it.downlink.of(UUID)), DEADLINE_S)
        it.notify(b'{"n":1}')
        it.notify(b'{"n":2}')
        code, out, err = await output(sub)
        assert (code, out) == (0, b'{"n":1}\n{"n":2}\n')
        assert err == b"" or b"denied" in err


async def test_mosquitto_is_told_that_it_is_not_authorized() -> None:
    """Its words for CONNACK 5."""
    async with world() as it:
        process = await mosquitto("mosquitto_pub", it, "-P", "wrong", "-t", own("telemetry"), "-m", "{}")
        code, _, err = await output(process)
        assert (code, b"not authori" in err.lower()) == (5, True)


@asynccontextmanager
async def paho_client(it: World) -> AsyncIterator[paho.Client]:
    """A paho client of the first device with its network thread."""
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="paho", clean_session=False)
    client.username_pw_set(UUID, TOKEN)
    client.reconnect_delay_set(1, 1)
    await asyncio.to_thread(client.connect, "127.0.0.1", it.edge.port)
    client.loop_start()
    try:
        yield client
    finally:
        client.disconnect()
        await asyncio.to_thread(client.loop_stop)


async def test_paho_publishes_hears_and_is_explained() -> None:
    """1,500 readings of each QoS, a notification, and an explanation."""
    heard: list[tuple[str, bytes]] = []
    async with world() as it, paho_client(it) as client:
        client.on_message = lambda _, __, message: heard.append((message.topic, message.payload))
        client.subscribe([(own("notifications"), 1), (own("errors"), 1)])
        sent = [client.publish(own("telemetry"), READING, qos=n % 3) for n in range(4500)]
        await until(lambda: all(one.is_published() for one in sent), 4 * DEADLINE_S)
        await until(lambda: len(it.uplink.stored) == 4500, DEADLINE_S)
        it.notify(b"{}")
        client.publish(own("telemetry"), b"nonsense", qos=2)
        await until(lambda: len(heard) == 2, DEADLINE_S)
    assert heard[0] == (own("notifications"), b"{}")
    assert heard[1][0] == own("errors")
    assert json.loads(heard[1][1])["payload"] == "nonsense"


async def test_paho_sends_again_what_was_not_acknowledged() -> None:
    """It does so only on a new connection, which is why an unanswered one is closed."""
    async with world(Limits(resend_s=1.0)) as it, paho_client(it) as client:
        it.uplink.refusal = lambda _: unavailable("ingest is down")
        sent = [client.publish(own("telemetry"), READING, qos=1 + n % 2) for n in range(40)]
        await until(lambda: it.uplink.most_waiting > 0, DEADLINE_S)
        it.uplink.refusal = lambda _: None
        await until(lambda: all(one.is_published() for one in sent), 2 * DEADLINE_S)
        assert len(it.uplink.stored) == 40


