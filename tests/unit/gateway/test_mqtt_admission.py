"""Who a CONNECT proves to be, and with which return code it is refused."""

import pytest
from aemos_core.errors import unavailable
from aemos_gateway.mqtt_admission import Refusal, Topics, prove
from aemos_gateway.mqtt_frames import Frames, ProtocolError

from tests.support.fake_mqtt_ports import OTHER_TOKEN, UUID, FakeAuth, connect, own, packet, string

HEAD = string("MQTT") + b"\x04"


def body_of(stream: bytes) -> bytes:
    """The body of the one packet."""
    reader = Frames()
    reader.push(stream)
    connect_packet = reader.cut()
    assert connect_packet is not None
    return connect_packet[1]


async def test_a_device_is_proven_by_its_uuid_and_token() -> None:
    """The session's key begins with the device, so another device cannot name it."""
    proven = await prove(body_of(connect(clean=False, will=(own("status"), b"\0gone"))), FakeAuth())
    assert (proven.device.device_uuid, proven.session_key, proven.clean) == (UUID, f"{UUID}/c1", False)
    assert (proven.keep_alive_s, proven.will) == (60, (own("status"), b"\0gone"))


async def test_without_a_client_id_every_connection_is_a_session_of_its_own() -> None:
    """MQTT 3.1.1, 3.1.3.1."""
    first, second = [await prove(body_of(connect(client="")), FakeAuth()) for _ in range(2)]
    assert first.session_key != second.session_key


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (connect(level=3), 1),
        (connect(level=5), 1),
        (packet(0x10, string("MQIsdp") + b"\x03\x02\0\0" + string("c")), 1),
        (connect(client="", clean=False), 2),
        (connect(token=None), 5),
        (connect(token=""), 5),
        (connect(token="wrong"), 5),
        (connect(token=b"\xff\xfe"), 5),
        (connect(token=OTHER_TOKEN), 5),
        (connect(uuid="def-456"), 5),
        (connect(client="a\0b"), 5),
        (packet(0x10, body_of(connect()) + b"surplus"), 5),
        (packet(0x10, body_of(connect())[:-1]), 5),
        (connect(will=(own("telemetry"), b"{}")), 5),
        (connect(will=("aemos/devices/def-456/notifications", b"{}")), 5),
        (connect(will=("#", b"{}")), 5),
    ],
)
async def test_refused_with_a_return_code(stream: bytes, code: int) -> None:
    """MQTT 3.1.1, 3.2.2.3."""
    with pytest.raises(Refusal) as refused:
        await prove(body_of(stream), FakeAuth())
    assert refused.value.code == code


@pytest.mark.parametrize(
    "stream",
    [
        packet(0x10, b""),
        packet(0x10, string("HTTP") + b"\x04\x02\0\0" + string("c")),
        packet(0x10, HEAD),
        packet(0x10, HEAD + b"\x02"),
        connect(flags=0x01),
        connect(flags=0x18, will=(own("status"), b"")),
        connect(flags=0x20),
        connect(flags=0x40, token=None),
    ],
)
async def test_what_is_no_connect_is_not_answered(stream: bytes) -> None:
    """Reserved bits, a will of QoS 3, a will's flags without a will, a password without a user name."""
    with pytest.raises(ProtocolError):
        await prove(body_of(stream), FakeAuth())


async def test_ingest_unavailable_is_told_as_such() -> None:
    """CONNACK 3: the device tries again; 5 would make it give up."""
    auth = FakeAuth()
    auth.broken = unavailable("ingest is down")
    with pytest.raises(Refusal) as refused:
        await prove(body_of(connect()), auth)
    assert refused.value.code == 3


@pytest.mark.parametrize(
    ("topic", "allowed"),
    [
        ("aemos/devices/abc-123/notifications", True),
        ("aemos/devices/abc-123/status", True),
        ("aemos/devices/abc-123/telemetry", False),
        ("aemos/devices/abc-123/", False),
        ("aemos/devices/abc-123/#", False),
        ("aemos/devices/abc-123/a+b", False),
        ("aemos/devices/abc-1234/notifications", False),
        ("aemos/devices/def-456/notifications", False),
        ("$SYS/broker", False),
        ("", False),
    ],
)
def test_a_will_names_the_devices_own_topics(topic: str, allowed: bool) -> None:
    """Never telemetry, never a wildcard, never another device."""
    assert Topics("abc-123").may_will(topic) is allowed
