"""The CoAP edge on a real socket, asked by hand, byte for byte."""

import asyncio
import gc
import json
from typing import Any

import pytest
from aemos_core.errors import AemosError, Kind, unavailable
from aemos_gateway import coap_datagram, coap_exchanges
from aemos_gateway.coap_exchanges import Exchange
from aiocoap.numbers import ContentFormat, OptionNumber
from aiocoap.numbers.constants import TransportTuning
from aiocoap.numbers.types import Type

from tests.support.coap_client import (
    ACK,
    CON,
    FORMAT,
    NON,
    OBSERVE,
    PATH,
    POST,
    READINGS_PATH,
    SIZE1,
    RawClient,
    block1,
    datagram,
    notifications,
    raw_client,
    reading,
    uint,
)
from tests.support.fake_coap import OURS, THEIR_TOKEN, TOKEN, Edge, FakeAuth, running_edge
from tests.support.redis_server import until

pytestmark = pytest.mark.asyncio

BODY = b'{"value":"25.5","variableName":"temperature","recievedAt":"2026-01-20T10:30:00Z"}'
WITHIN_S = 5.0
REGISTER = (OBSERVE, b"")


# Hard cases of the design by their number: what is sent, the code, the word for programs.
HARD_CASES: dict[str, tuple[bytes, str, str]] = {
    "1 no token": (datagram(POST, READINGS_PATH, BODY), "4.01", "unauthenticated"),
    "1 empty token": (reading(BODY, device=b""), "4.01", "unauthenticated"),
    "1 unknown token": (reading(BODY, device=b"nobody"), "4.01", "unauthenticated"),
    "1 unknown token, observing": (notifications("abc-123", device=b"x", extra=[REGISTER]), "4.01", "unauthenticated"),
    "3 another organization": (notifications("abc-123", device=THEIR_TOKEN), "4.04", "not_found"),
    "3 no such device": (notifications("nobody", device=TOKEN, extra=[REGISTER]), "4.04", "not_found"),
    "6 first block says too much": (
        reading(bytes(1024), device=TOKEN, extra=[block1(0, True), (SIZE1, uint(65_537))]),
        "4.13",
        "too_large",
    ),
    "6 datagram cut by the socket": (reading(bytes(5000), device=TOKEN), "4.13", "too_large"),
    "8 path": (datagram(POST, [(PATH, b"\xff\xfe")], BODY), "4.00", "malformed"),
    "8 body": (reading(b'{"value":"\xff","variableName":"t"}', device=TOKEN), "4.00", "malformed"),
    "9 NUL": (reading(b'{"value":"\\u0000","variableName":"t"}', device=TOKEN), "4.00", "malformed"),
    "10 NaN": (reading(b'{"value":NaN,"variableName":"t"}', device=TOKEN), "4.00", "malformed"),
    "10 Infinity": (reading(b'{"value":-Infinity,"variableName":"t"}', device=TOKEN), "4.00", "malformed"),
    "12 nested 1,000": (reading(b'{"variableName":"t","value":' + b"[" * 1000, device=TOKEN), "4.00", "malformed"),
    "no body": (reading(b"", device=TOKEN), "4.00", "malformed"),
    "not JSON": (reading(b"{25.5 C", device=TOKEN), "4.00", "malformed"),
    "field missing": (reading(b'{"value":1}', device=TOKEN), "4.00", "invalid"),
    "18 unknown critical option": (reading(BODY, device=TOKEN, extra=[(2049, b"x")]), "4.02", "bad_option"),
    "18 If-None-Match": (reading(BODY, device=TOKEN, extra=[(5, b"")]), "4.02", "bad_option"),
    "18 Proxy-Uri": (reading(BODY, device=TOKEN, extra=[(35, b"coap://other/")]), "5.05", "no_proxy"),
    "18 unknown method": (reading(BODY, device=TOKEN, code=31), "4.05", "method_not_allowed"),
    "18 unknown method, no path": (datagram(30), "4.05", "method_not_allowed"),
    "18 other method": (reading(BODY, device=TOKEN, code=3), "4.05", "method_not_allowed"),
    "18 wrong Content-Format": (
        reading(BODY, device=TOKEN, extra=[(FORMAT, b"\x3c")]),
        "4.15",
        "unsupported_content_format",
    ),
    "Accept: CBOR": (reading(BODY, device=TOKEN, extra=[(17, b"\x3c")]), "4.06", "not_acceptable"),
    "19 gap": (reading(bytes(1024), device=TOKEN, extra=[block1(1, True)]), "4.08", "incomplete"),
    "block of a wrong size": (reading(bytes(10), device=TOKEN, extra=[block1(0, True)]), "4.00", "malformed"),
    "no such resource": (datagram(1, [(PATH, b"api")]), "4.04", "not_found"),
    "no such block": (datagram(1, [(PATH, b".well-known"), (PATH, b"core"), (23, b"\x90")]), "4.00", "malformed"),
}


@pytest.mark.parametrize("case", HARD_CASES)
async def test_hard_cases(edge: Edge, client: RawClient, caplog: pytest.LogCaptureFixture, case: str) -> None:
    """Each is answered on its acknowledgement with its code and reason; nothing is stored, no traceback is logged."""
    data, code, reason = HARD_CASES[case]
    message = await client.ask(data)
    body = json.loads(message.payload)
    assert (message.mtype, message.mid, message.token) == (Type.ACK, 1, b"\x01")
    assert (message.code.dotted, body["reason"], message.opt.content_format) == (code, reason, 50)
    assert body["status"] == int(code.replace(".", ""))
    assert message.opt.size1 == (65_536 if code == "4.13" else None)
    assert edge.uplink.readings == []
    assert {refused.reason for refused in edge.uplink.refused.all} <= {reason}
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


@pytest.mark.parametrize("kind", [CON, NON])
async def test_broken_datagrams(client: RawClient, kind: int) -> None:
    """What is no message is reset when confirmable and ignored otherwise, and the edge lives on."""
    head = bytes((0x40 | kind << 4, POST, 0, 7))
    broken_options = [head + options for options in (b"\xf1", b"\xb9short", b"\xff")]
    for broken in (b"", b"\x40", head[:3], bytes((head[0] | 9,)) + head[1:], *broken_options):
        client.send(broken)
        if kind == CON and len(broken) >= len(head):
            assert await client.receive() == b"\x70\x00\x00\x07"
    client.send(reading(BODY, device=TOKEN, extra=[(9, b"")], kind=NON))
    assert await client.is_silent()


async def test_response_to_nothing(client: RawClient) -> None:
    """It is reset when confirmable, whatever its options are."""
    for mid, options in enumerate([[], [(2049, b"x")]]):
        client.send(datagram(69, options, mid=mid))
        assert await client.receive() == b"\x70\x00\x00" + bytes((mid,))
        client.send(datagram(69, options, mid=mid, kind=NON))
    assert await client.is_silent()


async def test_nothing_is_kept_of_odd_options(client: RawClient) -> None:
    """aiocoap keeps each option number and content format it ever saw: those over 16 bits never reach it."""
    kept = [len(numbers._value2member_map_) for numbers in (OptionNumber, ContentFormat)]
    assert (await client.ask(reading(BODY, device=TOKEN, extra=[(FORMAT, b"12345678")]))).code.dotted == "4.15"
    assert (await client.ask(reading(BODY, device=TOKEN, extra=[(17, b"12345678")], mid=2))).code.dotted == "4.02"
    assert kept == [len(numbers._value2member_map_) for numbers in (OptionNumber, ContentFormat)]


async def test_nested_deeper_than_the_parser(edge: Edge, client: RawClient) -> None:
    """60,000 brackets in blocks are 4.00 and not a crash (hard case 12)."""
    body = b'{"variableName":"t","value":' + b"[" * 60_000
    parts = [body[at : at + 1024] for at in range(0, len(body), 1024)]
    for number, part in enumerate(parts):
        more = number + 1 < len(parts)
        answer = await client.ask(reading(part, device=TOKEN, extra=[block1(number, more)], mid=number, token=b"b"))
        assert answer.code.dotted == ("2.31" if more else "4.00")
    assert edge.uplink.readings == []


async def test_blocks_of_two_clients_at_once(edge: Edge, client: RawClient) -> None:
    """Interleaved transfers of one device from two sockets are independent (hard case 19)."""
    async with raw_client(edge.port) as other:
        for sender, letter in ((client, b"x"), (other, b"y")):
            start = b'{"variableName":"t","value":"' + letter * 35
            assert (await sender.ask(reading(start, device=TOKEN, extra=[block1(0, True, 2)]))).code.dotted == "2.31"
        for sender in (client, other):
            answer = await sender.ask(reading(b'"}', device=TOKEN, extra=[block1(1, False, 2)], mid=2, token=b"2"))
            assert answer.code.dotted == "2.01"
            assert answer.opt.block1 == (1, False, 2)
    assert [stored.value[1:2] for stored in edge.uplink.readings] == [b"x", b"y"]


async def test_a_device_with_little_memory(edge: Edge, client: RawClient) -> None:
    """It has no room for the answer to its reading and gets 2.01 without; asking for a block of it stores nothing."""
    answer = await client.ask(reading(BODY, device=TOKEN, extra=[(23, uint(1))]))
    assert (answer.code.dotted, answer.opt.block2, answer.payload) == ("2.01", None, b"")
    answer = await client.ask(reading(BODY, device=TOKEN, extra=[(23, uint(1 << 4 | 1))], mid=2, token=b"2"))
    assert answer.code.dotted == "4.00"
    assert len(edge.uplink.readings) == 1


RETRANSMITTED = {
    "fast": reading(BODY, device=TOKEN),
    "through aiocoap": reading(BODY, device=TOKEN, extra=[(17, b"\x32")]),
}


@pytest.mark.parametrize("name", RETRANSMITTED)
async def test_retransmission_after_the_answer(edge: Edge, client: RawClient, name: str) -> None:
    """The same datagram again gets the same bytes again, and is stored once (hard case 17)."""
    client.send(RETRANSMITTED[name])
    first = await client.receive()
    client.send(RETRANSMITTED[name])
    assert await client.receive() == first
    assert len(edge.uplink.readings) == 1


async def test_retransmission_before_the_answer(edge: Edge, client: RawClient) -> None:
    """It is acknowledged without an answer, which then comes confirmably by itself until it is acknowledged."""
    edge.uplink.held = True
    data = reading(BODY, device=TOKEN)
    client.send(data)
    client.send(data)
    acknowledgement = b"\x60\x00\x00\x01"
    assert await client.receive() == acknowledgement
    edge.uplink.release()
    answer = await client.message()
    assert (answer.mtype, answer.code.dotted, answer.token) == (Type.CON, "2.01", b"\x01")
    client.send(bytes((0x40 | ACK << 4, 0)) + answer.mid.to_bytes(2))
    client.send(data)
    assert await client.receive() == acknowledgement
    assert len(edge.uplink.readings) == 1


async def test_client_that_dies_before_its_answers(
    edge: Edge, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer that is not acknowledged is the last that is tried; the next request is answered again."""
    monkeypatch.setattr(TransportTuning, "ACK_TIMEOUT", 0.01)
    tasks = len(asyncio.all_tasks())
    edge.uplink.held = True
    for mid in (1, 2, 3):
        for _ in range(2):
            client.send(reading(BODY, device=TOKEN, mid=mid))
        assert await client.receive() == bytes((0x60, 0, 0, mid))
    edge.uplink.release()
    edge.uplink.held = False
    assert len({await client.receive() for _ in range(1 + TransportTuning.MAX_RETRANSMIT)}) == 1
    await until(lambda: len(asyncio.all_tasks()) == tasks, WITHIN_S, "given up")
    assert client.received.empty()
    assert (await client.ask(reading(BODY, device=TOKEN, mid=4))).mid == 4


async def test_duplicate_that_is_not_confirmable(edge: Edge, client: RawClient) -> None:
    """It is ignored (RFC 7252, 4.5)."""
    data = reading(BODY, device=TOKEN, kind=NON)
    assert (await client.ask(data)).code.dotted == "2.01"
    client.send(data)
    assert await client.is_silent()
    assert len(edge.uplink.readings) == 1


async def test_token_that_is_not_in_memory() -> None:
    """The first datagrams of a device wait for ingest to know its token; each is still stored once."""
    edge = Edge(auth=FakeAuth(warm=False))
    async with running_edge(edge), raw_client(edge.port) as client:
        data = reading(BODY, device=TOKEN)
        client.send(data)
        client.send(data)
        answers = [await client.message(), await client.message()]
        assert {answer.code.dotted for answer in answers} <= {"2.01", "0.00"}
        assert (await client.ask(reading(BODY, device=TOKEN, mid=2))).code.dotted == "2.01"
    assert len(edge.uplink.readings) == 2


async def test_message_id_used_again(edge: Edge, client: RawClient) -> None:
    """A device that restarts and begins its message ids anew is not taken for a retransmission."""
    for number, extra in enumerate([[], [(17, b"\x32")], [], [(17, b"\x32")]]):
        data = reading(BODY, device=TOKEN, extra=extra, mid=5, token=bytes((number,)))
        assert (await client.ask(data)).token == bytes((number,))
    assert len(edge.uplink.readings) == 4


@pytest.mark.parametrize("extra", [[], [(17, b"\x32")]])
@pytest.mark.parametrize(
    ("refusal", "code", "max_age"),
    [
        (unavailable("ingest is away"), "5.03", 1),
        (AemosError(Kind.BUSY, "too fast", retry_after=7), "4.29", 7),
        (AemosError(Kind.EXISTS, "twice"), "4.09", None),
    ],
)
async def test_refusals_of_ingest(
    edge: Edge, client: RawClient, extra: Any, refusal: AemosError, code: str, max_age: int | None
) -> None:
    """What ingest refuses has the code of the table, and Max-Age where the device may come back."""
    edge.uplink.refusal = refusal
    message = await client.ask(reading(BODY, device=TOKEN, extra=extra))
    assert (message.code.dotted, message.opt.max_age) == (code, max_age)
    [refused] = edge.uplink.refused.all
    assert (refused.device_uuid, refused.payload, refused.reason) == (OURS.device_uuid, BODY, refusal.reason)


async def test_burst_is_answered_in_full(edge: Edge, client: RawClient) -> None:
    """More datagrams than one wake takes are all stored and answered, those for aiocoap among them."""
    expected = {mid.to_bytes(2) for mid in range(500)}
    for mid in range(500):
        client.send(
            reading(BODY, device=TOKEN, mid=mid, extra=[] if mid % 10 else [(17, b"\x32")], token=mid.to_bytes(2))
        )
    assert {(await client.receive())[2:4] for _ in expected} == expected
    assert len(edge.uplink.readings) == 500


async def test_no_response_is_respected(edge: Edge, client: RawClient) -> None:
    """A non-confirmable reading that wants no answer (RFC 7967) gets none, and its datagram is not kept."""
    data = reading(BODY, device=TOKEN, kind=NON, extra=[(258, b"\x1a")])
    client.send(data)
    await until(lambda: len(edge.uplink.readings) == 1, WITHIN_S, "stored")
    assert await client.is_silent()
    assert data not in [kept.request for kept in gc.get_objects() if isinstance(kept, Exchange)]


async def test_too_many_requests_under_way(edge: Edge, client: RawClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that needs a task is refused for now, and so is its retransmission; a usual reading needs none."""
    monkeypatch.setattr(coap_exchanges, "MOST_TASKS", 0)
    asked = notifications(OURS.device_uuid, device=TOKEN, mid=7)
    for _ in range(2):
        answer = await client.ask(asked)
        assert (answer.mid, answer.code.dotted, answer.opt.max_age) == (7, "5.03", 1)
    assert (await client.ask(reading(BODY, device=TOKEN, mid=8))).code.dotted == "2.01"


async def test_stop(client: RawClient, edge: Edge) -> None:
    """What was taken is answered, what comes after is refused with 5.03, observers are told."""
    edge.uplink.held = True
    await client.observe(OURS.device_uuid, device=TOKEN, mid=9, token=b"o")
    client.send(reading(BODY, device=TOKEN))
    await until(lambda: len(edge.uplink.readings) == 1, WITHIN_S, "taken")
    edge.stop.set()
    told = await client.message()
    assert (told.code.dotted, told.token) == ("5.03", b"o")
    for mid, extra in ((2, []), (3, [(17, b"\x32")])):
        late = await client.ask(reading(BODY, device=TOKEN, mid=mid, extra=extra))
        assert (late.mid, late.code.dotted, late.opt.max_age) == (mid, "5.03", 1)
    assert (await client.observe(OURS.device_uuid, device=TOKEN, mid=4)).code.dotted == "5.03"
    edge.uplink.release()
    answer = await client.message()
    assert (answer.mid, answer.code.dotted) == (1, "2.01")
    assert len(edge.uplink.readings) == 1


async def test_failure_of_our_own_is_500(edge: Edge, client: RawClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw is answered on either path, and says nothing of the cause."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(edge.uplink, "put", fail)
    for mid, extra in ((1, []), (2, [(17, b"\x32")])):
        message = await client.ask(reading(BODY, device=TOKEN, mid=mid, extra=extra))
        assert message.code.dotted == "5.00"
        assert b"secret" not in message.payload
    monkeypatch.setattr(coap_datagram, "telemetry", fail)
    assert (await client.ask(reading(BODY, device=TOKEN, mid=3))).code.dotted == "5.00"


async def test_a_reading_of_an_unusual_spelling_has_an_origin_key(edge: Edge) -> None:
    """Another message has another key; the same one, to the gateway that runs after this one, has the same."""
    messages = [reading(BODY, device=TOKEN, extra=[(17, bytes([50]))], mid=mid) for mid in (7, 8)]
    assert [coap_datagram.telemetry(message) for message in messages] == [None, None]
    async with raw_client(edge.port) as client:
        for message in messages:
            await client.ask(message)
        ours = client.transport.get_extra_info("sockname")
    keys = [origin.key for origin in edge.uplink.origins]
    async with running_edge(edge), raw_client(edge.port, local=ours) as again:
        for message in messages:
            await again.ask(message)
    assert [origin.key for origin in edge.uplink.origins] == keys * 2
    assert len({*keys, 0}) == 3
