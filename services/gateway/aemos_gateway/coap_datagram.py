"""CoAP datagrams as bytes (RFC 7252, 3): recognising telemetry, refusing what is wrong, writing answers. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from aemos_gateway.coap_answers import CONTENT_FORMAT, JSON, PLAIN, Answer, CoapError

POST = 2
BAD_OPTION = 4 * 32 + 2
_LONGEST_TOKEN = 8
_LAST_OPTION = 0xFFFF
_PAYLOAD = 0xFF
_URI_HOST, _URI_PORT, _URI_PATH, _URI_QUERY = 3, 7, 11, 15
_PROXY = (35, 39)
_TEXT = (_URI_HOST, 8, _URI_PATH, _URI_QUERY, 20)


class _Rule(NamedTuple):
    longest: int
    repeatable: bool = False


_CRITICAL = {
    _URI_HOST: _Rule(255),
    _URI_PORT: _Rule(2),
    _URI_PATH: _Rule(255, repeatable=True),
    _URI_QUERY: _Rule(255, repeatable=True),
    17: _Rule(2),  # Accept
    23: _Rule(3),  # Block2
    27: _Rule(3),  # Block1
}

_REST_OF_PATH = b"api\x02v1\x0bdatastreams\x05token"
_PATH_AFTER = {n: bytes([(_URI_PATH - n) << 4 | 3]) + _REST_OF_PATH for n in (0, _URI_HOST, _URI_PORT)}
_QUERY_AFTER_PATH, _QUERY_AFTER_FORMAT = _URI_QUERY - _URI_PATH, _URI_QUERY - CONTENT_FORMAT


class FormatError(Exception):
    """The bytes are no CoAP message; a confirmable one is answered by a reset (RFC 7252, 4.2)."""


def is_request(datagram: bytes) -> bool:
    """A confirmable or non-confirmable message with a method."""
    return len(datagram) >= 4 and datagram[0] & 0xE0 == 0x40 and 0 < datagram[1] < 32


def is_confirmable(datagram: bytes) -> bool:
    """Wants an acknowledgement."""
    return len(datagram) >= 4 and datagram[0] & 0xF0 == 0x40


def telemetry(datagram: bytes) -> tuple[bytes, bytes] | None:
    """(device token, body) of `POST /api/v1/datastreams/token?token=...` in its usual spelling; None otherwise.

    The usual spelling: Uri-Host and Uri-Port or not, Content-Format absent, text or JSON, one query, a body, and no
    other option. What is None may still be telemetry, for aiocoap to read.
    """
    try:
        return _telemetry(datagram)
    except IndexError:
        return None


def _telemetry(data: bytes) -> tuple[bytes, bytes] | None:
    if data[1] != POST or data[0] & 0xE0 != 0x40 or data[0] & 15 > _LONGEST_TOKEN:
        return None
    at, number = _after_host_and_port(data, 4 + (data[0] & 15))
    path = _PATH_AFTER[number]
    if not data.startswith(path, at):
        return None
    at, delta = _after_format(data, at + len(path))
    length = data[at] - (delta << 4)
    if length == 13:
        at += 1
        length += data[at]
    elif not 0 <= length < 13:
        return None
    end = at + 1 + length
    if data[end] != _PAYLOAD or not data.startswith(b"token=", at + 1) or end + 1 == len(data):
        return None
    return data[at + 7 : end], data[end + 1 :]


def _after_host_and_port(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    while (delta := data[at] >> 4) and number + delta in (_URI_HOST, _URI_PORT):
        length = data[at] & 15
        if length > 13:
            break
        number += delta
        at += 1 + length if length < 13 else 15 + data[at + 1]
    return at, number


def _after_format(data: bytes, at: int) -> tuple[int, int]:
    if data[at] == 0x10:  # text/plain: the value 0 has no byte
        return at + 1, _QUERY_AFTER_FORMAT
    if data[at] == 0x11 and data[at + 1] == JSON:
        return at + 2, _QUERY_AFTER_FORMAT
    return at, _QUERY_AFTER_PATH


def check(datagram: bytes) -> None:
    """Raises what aiocoap would let pass, keep in memory or die of: FormatError, or the CoapError to answer.

    aiocoap keeps every option number and content format it ever saw, so those must be few.
    """
    if len(datagram) < 4 or datagram[0] >> 6 != 1 or datagram[0] & 15 > _LONGEST_TOKEN:
        raise FormatError
    seen: set[int] = set()
    for number, value in _options(datagram):
        _check_option(number, value, number in seen)
        seen.add(number)


def _check_option(number: int, value: bytes, repeated: bool) -> None:
    if number in _PROXY:
        raise CoapError("5.05", "no_proxy", "this is not a proxy")
    if number & 1:
        rule = _CRITICAL.get(number)
        if rule is None or len(value) > rule.longest or (repeated and not rule.repeatable):
            raise CoapError("4.02", "bad_option", f"option {number} is not understood, too long or repeated")
    if number == CONTENT_FORMAT and len(value) > 2:
        raise CoapError("4.15", "unsupported_content_format", "a content format has at most 2 bytes")
    if number in _TEXT and not _is_utf8(value):
        raise CoapError("4.00", "malformed", f"option {number} is not UTF-8")


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _options(data: bytes) -> Iterator[tuple[int, bytes]]:
    at, number = 4 + (data[0] & 15), 0
    while at < len(data) and data[at] != _PAYLOAD:
        first = data[at]
        delta, at = _extended(data, at + 1, first >> 4)
        length, at = _extended(data, at, first & 15)
        number += delta
        if at + length > len(data) or number > _LAST_OPTION:
            raise FormatError
        yield number, data[at : at + length]
        at += length
    if at == len(data) - 1:  # a payload is announced, and there is none
        raise FormatError


def _extended(data: bytes, at: int, nibble: int) -> tuple[int, int]:
    if nibble < 13:
        return nibble, at
    more = nibble - 12
    if nibble == 15 or at + more > len(data):
        raise FormatError
    return int.from_bytes(data[at : at + more]) + (13 if more == 1 else 269), at + more


def response(request: bytes, mid: int, answer: Answer) -> bytes:
    """Piggybacked on the acknowledgement of a confirmable request, else non-confirmable with the message id `mid`."""
    token_end = 4 + (request[0] & 15)
    if is_confirmable(request):
        head = bytes((request[0] | 0x20, answer.code)) + request[2:token_end]
    else:
        head = bytes((request[0], answer.code)) + mid.to_bytes(2) + request[4:token_end]
    return head + _body(answer)


def confirmable(request: bytes, mid: int, answer: Answer) -> bytes:
    """A message of its own, to be acknowledged (RFC 7252, 5.2.2)."""
    head = bytes((request[0] & 0xCF, answer.code)) + mid.to_bytes(2)
    return head + request[4 : 4 + (request[0] & 15)] + _body(answer)


def empty_ack(request: bytes) -> bytes:
    """ "I have it, the answer follows" (RFC 7252, 5.2.2)."""
    return b"\x60\x00" + request[2:4]


def reset(message: bytes) -> bytes:
    """ "I cannot make sense of it" (RFC 7252, 4.2)."""
    return b"\x70\x00" + message[2:4]


def _body(answer: Answer) -> bytes:
    options = b"\xc1\x32" if answer.options is PLAIN else _encoded(answer.options)
    return b"%b\xff%b" % (options, answer.payload) if answer.payload else options


def _encoded(options: Mapping[int, int]) -> bytes:
    encoded, before = b"", 0
    for number, value in sorted(options.items()):
        data = value.to_bytes((value.bit_length() + 7) // 8)
        delta, before = number - before, number
        head = (delta << 4 | len(data),) if delta < 13 else (0xD0 | len(data), delta - 13)
        encoded += bytes(head) + data
    return encoded
