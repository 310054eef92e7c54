"""The stream is cut into packets, and amqtt's parsers take only what is well formed."""

from itertools import pairwise

import pytest
from aemos_gateway import mqtt_frames as frames
from aemos_gateway.mqtt_frames import Frames, ProtocolError
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fake_mqtt_ports import packet, publish, string, subscribe

PINGREQ = (0xC0, b"")


def opened() -> Frames:
    """After the CONNECT."""
    reader = Frames()
    reader.opening = False
    return reader


@given(bodies=st.lists(st.binary(max_size=300), max_size=6), cuts=st.lists(st.integers(0, 2000)))
def test_cutting_does_not_depend_on_how_the_stream_arrives(bodies: list[bytes], cuts: list[int]) -> None:
    """The packets are the same, in whatever pieces their bytes come."""
    stream = b"".join(packet(0x30, body) for body in bodies)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    reader, seen = opened(), []
    for start, end in pairwise(edges):
        reader.push(stream[start:end])
        seen += iter(reader.cut, None)
    assert seen == [(0x30, body) for body in bodies]


def test_what_is_left_uncut_comes_first_the_next_time() -> None:
    """A caller may stop after one packet: nothing behind it is lost."""
    reader = Frames()
    reader.push(packet(0x10, b"one") + packet(0xC0, b"") + b"\x30")
    assert reader.cut() == (0x10, b"one")
    reader.opening = False
    reader.push(b"\x01x")
    assert list(iter(reader.cut, None)) == [PINGREQ, (0x30, b"x")]


def test_a_large_packet_in_small_pieces_is_copied_once() -> None:
    """While the end is missing nothing is looked at again, so a dripping peer costs what its bytes cost."""
    reader = opened()
    stream = packet(0x30, bytes(200_000))
    for at in range(0, len(stream), 10):
        reader.push(stream[at : at + 10])
        got = reader.cut()
    assert got == (0x30, bytes(200_000))


@pytest.mark.parametrize(
    "stream",
    [
        b"\x30\xff\xff\xff\xff",  # a fifth byte of length would follow
        b"\x30\xff\xff\xff\x7f",  # 268 MB
        b"\x30\x81\x80\x40",  # one byte over 1 MiB
        b"\x82\x81\x80\x01",  # one byte over 16 KiB, not a PUBLISH
    ],
)
def test_a_length_that_cannot_be_is_refused_at_the_header(stream: bytes) -> None:
    """Before one byte of the packet is there."""
    reader = opened()
    reader.push(stream)
    with pytest.raises(ProtocolError):
        reader.cut()


def test_a_stranger_can_only_send_connect() -> None:
    """Its first byte is enough to tell."""
    reader = Frames()
    reader.push(b"\x30")
    with pytest.raises(ProtocolError):
        reader.cut()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0",
        b"\0\1\0\5abc",  # cut short
        b"\0\1\0\3abc",  # no QoS
        b"\0\1" + string("abc") + b"\0surplus",
        b"\0\1" + string(b"\xff\xfe") + b"\0",
        b"\0\1" + string(b"\xed\xa0\x80") + b"\0",  # a lone surrogate
    ],
)
def test_a_malformed_subscribe_is_refused(body: bytes) -> None:
    """amqtt would take it for something."""
    with pytest.raises(ProtocolError):
        frames.parse(SubscribePacket, frames.SUBSCRIBE, body)


def test_a_well_formed_packet_is_understood() -> None:
    """Right-to-left text and emoji included."""
    body = subscribe(("a/🙂/אב", 2), ("b", 0))[2:]
    assert frames.parse(SubscribePacket, frames.SUBSCRIBE, body).payload.topics == [("a/🙂/אב", 2), ("b", 0)]
    body = b"\0\1" + string("a")
    assert frames.parse(UnsubscribePacket, frames.UNSUBSCRIBE, body).payload.topics == ["a"]


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_a_topic_is_not_empty_and_holds_no_nul(name: str) -> None:
    """MQTT 3.1.1, 4.7.3."""
    with pytest.raises(ProtocolError):
        frames.topic(name)


@pytest.mark.parametrize("body", [b"", b"\1", b"\0\0"])
def test_packet_id_is_never_zero(body: bytes) -> None:
    """MQTT 3.1.1, 2.3.1."""
    with pytest.raises(ProtocolError):
        frames.packet_id(body)


def test_the_test_client_speaks_as_the_cutter_hears() -> None:
    """The fake's PUBLISH is one packet."""
    reader = opened()
    reader.push(publish(b"x" * 1000))
    assert [header for header, _ in iter(reader.cut, None)] == [0x32]
