"""The hard cases of MQTT over real sockets, and how connections come and go."""

import asyncio
from collections.abc import Callable

import pytest
from aemos_core.errors import AemosError, Kind, unavailable
from aemos_core.process import PortInUse
from aemos_gateway.downlink import Downlink
from aemos_gateway.mqtt_connection import Hold
from aemos_gateway.mqtt_device import Limits, Ports
from aemos_gateway.mqtt_edge import MqttEdge
from aemos_gateway.mqtt_hearing import Backlog

from tests.support.fake_mqtt_ports import (
    ACCEPTED,
    DEADLINE_S,
    DISCONNECT,
    OTHER_TOKEN,
    OTHER_UUID,
    PINGRESP,
    TOKEN,
    UUID,
    FakeAuth,
    FakeLog,
    FakeSessions,
    FakeUplink,
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

WILL = (own("notifications"), b'{"gone":true}')
WILL_HEARD = (0x30, string(WILL[0]) + WILL[1])
PUBACK_1 = (0x40, b"\0\1")
FOREIGN = f"aemos/devices/{OTHER_UUID}/telemetry"


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
    "20 a PINGREQ with a body": packet(0xC0, b"x"),
    "20 a DISCONNECT with a body": packet(0xE0, b"x"),
    "20 a PUBACK with more than a packet id": packet(0x40, b"\0\1x"),
    "20 a PUBREL with more than a packet id": packet(0x62, b"\0\1x"),
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
        for clean in (True, False, True):
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
        await until(lambda: it.held(Hold.BUSY), DEADLINE_S)
        it.uplink.full = None
        assert await device.receive() == PUBACK_1
        assert await device.alive()


@pytest.mark.parametrize(("said", "willed"), [(b"", True), (DISCONNECT, False)], ids=["nothing", "DISCONNECT"])
async def test_the_will_is_for_those_who_do_not_say_good_bye(said: bytes, willed: bool) -> None:
    """DISCONNECT discards it, even when the connection is closed right behind it."""
    async with world() as it, listening(it, WILL[0]) as listener:
        device = await Raw.connected(it, said, connect_with=connect(will=WILL))
        device.close()
        await until(lambda: it.count == 1, DEADLINE_S)
        if willed:
            assert await listener.receive() == WILL_HEARD
        assert await listener.alive()


async def test_packets_behind_connect_wait_for_it() -> None:
    """MQTT 3.1.1, 3.1.4: a client need not wait for CONNACK, and may come in single bytes."""
    async with world() as it:
        device = await Raw.open(it)
        for byte in connect() + publish() + b"\xc0\x00":
            device.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await device.receive() == ACCEPTED
        assert {await device.receive(), await device.receive()} == {PINGRESP, PUBACK_1}


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
        assert it.uplink.presence.open == {42, 43}
        assert it.edge.disconnect(UUID) == 2
        assert await hears.rest() == []
        assert await device.rest() == []
        assert await other.alive()
        await until(lambda: it.uplink.presence.open == {43}, DEADLINE_S)


async def test_connections_are_counted_and_freed() -> None:
    """One more than the limit is closed at once; each that ends, however it ends, makes room."""
    async with world(Limits(connections=2)) as it:
        for end in (connect(token="wrong"), b"\xff\xff", connect() + publish(topic="#"), connect() + DISCONNECT) * 3:
            raw = await Raw.open(it, end)
            await raw.rest()
            await until(lambda: it.count == 0, DEADLINE_S)
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
        port = it.edge.port
        it.stop.set()
        assert await listener.rest() == []
        it.uplink.commit()
        assert await device.rest() == [PUBACK_1]
        with pytest.raises(OSError, match=r"refused|failed"):
            await asyncio.open_connection("127.0.0.1", port)


async def test_stopping_does_not_wait_for_what_ingest_thinks_of_a_token() -> None:
    """Ingest hangs while the edge asks whether a token still holds: it stops all the same."""
    async with world() as it:
        device = await Raw.connected(it)
        it.auth.devices.clear()
        it.auth.answering.clear()
        await until(lambda: it.auth.asked > 1, DEADLINE_S)
        it.stop.set()
        assert await device.rest() == []


async def test_a_storm_of_connects_leaves_the_others_their_turn() -> None:
    """Case 22: while 500 come at once, and while they go at once, an existing session is answered within 1 s."""

    async def slowest_ping(live: Raw, over: Callable[[], bool]) -> float:
        loop, slowest = asyncio.get_running_loop(), 0.0
        while not over():
            began = loop.time()
            assert await live.alive()
            slowest = max(slowest, loop.time() - began)
        return slowest

    async with world() as it:
        live = await Raw.connected(it)
        storm = [await Raw.open(it) for _ in range(500)]
        for n, raw in enumerate(storm):
            raw.send(connect(client=f"storm-{n}"))
        answers = asyncio.gather(*(raw.receive() for raw in storm))
        assert await slowest_ping(live, answers.done) < 1
        assert set(await answers) == {ACCEPTED}
        for raw in storm:
            raw.close()
        assert await slowest_ping(live, lambda: it.count == 1) < 1


async def test_a_taken_port_names_its_variable() -> None:
    """Somebody else listens there."""
    async with world() as it:
        log = FakeLog(Downlink())
        ports = Ports(FakeUplink(), Downlink(), FakeSessions(log), Backlog(log, log.read))
        with pytest.raises(PortInUse, match="AEMOS_MQTT_PORT"):
            await MqttEdge(FakeAuth(), ports).listen("127.0.0.1", it.edge.port)
