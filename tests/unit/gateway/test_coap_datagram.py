"""Telemetry is recognised on the bytes, what is wrong refused, and answers are CoAP."""

import pytest
from aemos_core.errors import unavailable
from aemos_gateway import coap_answers, coap_datagram
from aemos_gateway.coap_answers import CONTENT_FORMAT, MAX_AGE, SIZE1, Answer, CoapError
from aiocoap import Message
from aiocoap.numbers.types import Type

from tests.support.coap_client import FORMAT, NON, PATH, POST, QUERY, READINGS_PATH, datagram, reading

BODY = b'{"variableName":"temperature","value":25.5}'
TOKEN = b"aemos_device_token"
HOST, PORT, ACCEPT, NO_RESPONSE = 3, 7, 17, 258

USUAL = {
    "bare": reading(BODY, device=TOKEN),
    "not confirmable": reading(BODY, device=TOKEN, kind=NON),
    "no CoAP token": reading(BODY, device=TOKEN, token=b""),
    "longest CoAP token": reading(BODY, device=TOKEN, token=b"12345678"),
    "JSON": reading(BODY, device=TOKEN, extra=[(FORMAT, b"\x32")]),
    "text": reading(BODY, device=TOKEN, extra=[(FORMAT, b"")]),
    "Uri-Host": reading(BODY, device=TOKEN, extra=[(HOST, b"example.org")]),
    "long Uri-Host": reading(BODY, device=TOKEN, extra=[(HOST, b"gateway.example.org")]),
    "Uri-Port": reading(BODY, device=TOKEN, extra=[(PORT, b"\x16\x33")]),
    "all of them": reading(
        BODY, device=TOKEN, extra=[(HOST, b"a.example.org"), (PORT, b"\x16\x33"), (FORMAT, b"\x32")]
    ),
}


@pytest.mark.parametrize("name", USUAL)
def test_usual_spelling_is_recognised(name: str) -> None:
    """Token and body are found, whichever of the usual options are there."""
    assert coap_datagram.telemetry(USUAL[name]) == (TOKEN, BODY)


@pytest.mark.parametrize("length", [1, 6, 7, 100, 249])
def test_token_of_any_length_is_recognised(length: int) -> None:
    """The query's length takes one byte or two; an option of RFC 7252 has at most 255 bytes."""
    assert coap_datagram.telemetry(reading(BODY, device=b"t" * length)) == (b"t" * length, BODY)


UNUSUAL = {
    "GET": reading(BODY, device=TOKEN, code=1),
    "acknowledgement": reading(BODY, device=TOKEN, kind=2),
    "another path": datagram(POST, [*READINGS_PATH[:-1], (PATH, b"other"), (QUERY, b"token=" + TOKEN)], BODY),
    "longer path": reading(BODY, device=TOKEN, extra=[(PATH, b"more")]),
    "no query": datagram(POST, READINGS_PATH, BODY),
    "another query": datagram(POST, [*READINGS_PATH, (QUERY, b"tokem=" + TOKEN)], BODY),
    "two queries": reading(BODY, device=TOKEN, extra=[(QUERY, b"x=1")]),
    "XML": reading(BODY, device=TOKEN, extra=[(FORMAT, b"\x29")]),
    "Accept": reading(BODY, device=TOKEN, extra=[(ACCEPT, b"\x32")]),
    "No-Response": reading(BODY, device=TOKEN, extra=[(NO_RESPONSE, b"\x1a")]),
    "Uri-Host twice": reading(BODY, device=TOKEN, extra=[(HOST, b"a"), (HOST, b"b")]),
    "no body": reading(b"", device=TOKEN),
    "empty body": reading(b"", device=TOKEN) + b"\xff",
    "nothing": b"",
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_the_rest_is_left_to_aiocoap(name: str) -> None:
    """What is not telemetry, or spelled otherwise, is not recognised."""
    assert coap_datagram.telemetry(UNUSUAL[name]) is None


@pytest.mark.parametrize("name", USUAL)
def test_cut_datagrams_are_not_recognised(name: str) -> None:
    """Wherever a datagram ends before its body, it is no telemetry, and nothing is raised."""
    whole = USUAL[name]
    for end in range(len(whole) - len(BODY) + 1):
        assert coap_datagram.telemetry(whole[:end]) is None


@pytest.mark.parametrize("name", USUAL)
def test_aiocoap_reads_the_same(name: str) -> None:
    """What is recognised means the same to aiocoap."""
    message = Message.decode(USUAL[name])
    assert message.opt.uri_path == ("api", "v1", "datastreams", "token")
    assert (message.opt.uri_query, message.payload) == ((f"token={TOKEN.decode()}",), BODY)


REFUSED = {
    "unknown critical option": ([(9, b"")], "4.02"),
    "critical option too long": ([(PORT, b"123")], "4.02"),
    "critical option twice": ([(ACCEPT, b""), (ACCEPT, b"")], "4.02"),
    "Proxy-Uri": ([(35, b"coap://other/")], "5.05"),
    "Proxy-Scheme": ([(39, b"http")], "5.05"),
    "path not UTF-8": ([(PATH, b"\xff")], "4.00"),
    "query not UTF-8": ([(QUERY, b"token=\xc3\x28")], "4.00"),
    "location not UTF-8": ([(8, b"\xff")], "4.00"),
    "content format of 3 bytes": ([(FORMAT, b"123")], "4.15"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_options_are_refused(name: str) -> None:
    """Options that aiocoap would let pass or die of get their code."""
    options, code = REFUSED[name]
    with pytest.raises(CoapError) as caught:
        coap_datagram.check(datagram(POST, options))
    assert f"{caught.value.code >> 5}.{caught.value.code & 31:02}" == code


@pytest.mark.parametrize("option", [4, 6, 14, 16, 28, 60, 252, 258, 292, 65534])
def test_elective_options_pass(option: int) -> None:
    """An unknown elective option is ignored (RFC 7252, 5.4.1)."""
    coap_datagram.check(datagram(POST, [*READINGS_PATH, (option, b"\x01")], BODY))


BROKEN = {
    "short": b"\x40\x01\x00",
    "version 2": b"\x80\x01\x00\x01",
    "token length 9": b"\x49\x01\x00\x01123456789",
    "option cut": b"\x40\x01\x00\x01\xb5ab",
    "extended length cut": b"\x40\x01\x00\x01\xbd",
    "reserved delta": b"\x40\x01\x00\x01\xf0",
    "reserved length": b"\x40\x01\x00\x01\xbf",
    "option number over 65535": b"\x40\x01\x00\x01\xe0\xff\xff",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_messages_are_format_errors(name: str) -> None:
    """Bytes that are no message are told apart from messages that ask for too much."""
    with pytest.raises(coap_datagram.FormatError):
        coap_datagram.check(BROKEN[name])


@pytest.mark.parametrize(
    ("request_bytes", "kind", "mid"),
    [(reading(BODY, device=TOKEN, mid=77), Type.ACK, 77), (reading(BODY, device=TOKEN, mid=77, kind=NON), Type.NON, 9)],
)
def test_responses_are_coap(request_bytes: bytes, kind: Type, mid: int) -> None:
    """A confirmable request is answered on its acknowledgement, another by a message with an id of ours."""
    answer = Answer(163, b"{}", {SIZE1: 65536, CONTENT_FORMAT: 50, MAX_AGE: 300})
    message = Message.decode(coap_datagram.response(request_bytes, 9, answer))
    assert (message.mtype, message.mid, message.token, message.code) == (kind, mid, b"\x01", 163)
    assert (message.opt.content_format, message.opt.max_age, message.opt.size1) == (50, 300, 65536)
    assert message.payload == b"{}"


def test_busy_and_unavailable_say_when_to_come_back() -> None:
    """Max-Age is the error's retry_after."""
    assert coap_answers.refused(unavailable("no")).options[MAX_AGE] == 1
