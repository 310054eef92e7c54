"""What the CoAP edge answers: a code, a JSON body, and the options that go with them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple
from zlib import crc32

import msgspec
from aemos_core.errors import AemosError, Kind, internal
from aiocoap.optiontypes import BlockOption

from aemos_gateway import problems
from aemos_gateway.readings import MAX_READING_BYTES, Receipt

log = logging.getLogger("aemos.gateway")

MOST_PAYLOAD = 1_024
"""Bytes of a body that fit one datagram on every path (RFC 7252, 4.6)."""
ETAG, OBSERVE, CONTENT_FORMAT, MAX_AGE, BLOCK2, BLOCK1, SIZE1 = 4, 6, 12, 14, 23, 27, 60
JSON, LINK_FORMAT = 50, 40
PLAIN: Mapping[int, int] = {CONTENT_FORMAT: JSON}
"""The options of nearly every answer."""
_CREATED, _CONTENT = 65, 69
_TOO_LARGE = Kind.TOO_LARGE.answers.coap


class Answer(NamedTuple):
    """A response. `code` is class * 32 + detail; an option is known by its number and has an unsigned integer."""

    code: int
    payload: bytes
    options: Mapping[int, int] = PLAIN


CONTINUE = Answer(95, b"", {})
"""A block came, and is not the last one."""


class CoapError(AemosError):
    """What is wrong with a request by the rules of CoAP itself: the error table has no row for its code."""

    def __init__(self, dotted: str, reason: str, detail: str) -> None:
        super().__init__(Kind.MALFORMED, detail, reason=reason)
        major, minor = dotted.split(".")
        self.code = int(major) * 32 + int(minor)


def stored(result: Receipt) -> Answer:
    """2.01. A body over one datagram leaves out what the device knows, so nothing needs Block2: the value of a reading,
    and of a list everything but its length."""
    payload = result.answer()
    if len(payload) > MOST_PAYLOAD:
        body: dict[str, Any] = msgspec.json.decode(payload)
        if result.is_list:
            body = {"stored": len(result.stored)}
        else:
            del body["data"]["value"]
        payload = msgspec.json.encode(body)
    return Answer(_CREATED, payload)


def within(answer: Answer, asked: BlockOption.BlockwiseTuple | None) -> Answer:
    """Without its body when a client has no room for it: asking for the rest would be another request to store."""
    return answer if asked is None or len(answer.payload) <= asked.size else Answer(answer.code, b"", {})


def with_block1(answer: Answer, block: BlockOption.BlockwiseTuple | None) -> Answer:
    """Names the block that it answers, if the request was one (RFC 7959, 2.3)."""
    if block is None:
        return answer
    named = block.block_number << 4 | block.more << 3 | block.size_exponent
    return answer._replace(options={**answer.options, BLOCK1: named})


def content(payload: bytes, options: Mapping[int, int], asked: BlockOption.BlockwiseTuple | None) -> Answer:
    """2.05, or the block of it that is asked for."""
    return in_block2(Answer(_CONTENT, payload, options), asked)


def in_block2(answer: Answer, asked: BlockOption.BlockwiseTuple | None) -> Answer:
    """The block that is asked for; nothing of ours needs more than one of the largest (RFC 7959, 2.4)."""
    payload = answer.payload
    if asked is None or not payload:
        return answer
    size = min(asked.size, MOST_PAYLOAD)
    start, end = asked.block_number * size, (asked.block_number + 1) * size
    if start >= len(payload):
        raise CoapError("4.00", "malformed", "there is no such block")
    block2 = asked.block_number << 4 | (end < len(payload)) << 3 | min(asked.size_exponent, 6)
    return Answer(answer.code, payload[start:end], {**answer.options, ETAG: crc32(payload), BLOCK2: block2})


def refused(error: BaseException) -> Answer:
    """The problem of RFC 9457; its `status` is the CoAP code read as a number, 404 for 4.04.

    What nobody foresaw is logged, and its answer says nothing of it.
    """
    if not isinstance(error, AemosError):
        log.error("a CoAP request failed: %s", type(error).__name__, exc_info=error)
        error = internal()
    code = error.code if isinstance(error, CoapError) else error.kind.answers.coap
    options = {**PLAIN}
    if error.retry_after is not None:
        options[MAX_AGE] = error.retry_after
    if code == _TOO_LARGE:
        options[SIZE1] = MAX_READING_BYTES
    title = error.reason.replace("_", " ").capitalize()
    return Answer(code, problems.body(error, code // 32 * 100 + code % 32, title), options)
