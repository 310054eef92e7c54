"""What the CoAP edge answers: a code, a JSON body, and the options that go with them. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from aemos_core.errors import AemosError, Kind

from aemos_gateway.readings import MAX_READING_BYTES, Receipt

MOST_PAYLOAD = 1_024
"""Bytes of a body that fit one datagram on every path (RFC 7252, 4.6)."""
JSON = 50
LINK_FORMAT = 40
_CREATED = 65
_CONTENT = 69
_TOO_LARGE = Kind.TOO_LARGE.answers.coap


class Answer(NamedTuple):
    """A response. `code` is class * 32 + detail, `max_age` seconds, `size1` bytes (RFC 7959, 4)."""

    code: int
    payload: bytes
    max_age: int | None = None
    size1: int | None = None


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


def content(payload: bytes, max_age: int) -> Answer:
    """2.05 with a JSON body."""
    return Answer(_CONTENT, payload, max_age)


def refused(error: AemosError) -> Answer:
    """The problem of RFC 9457; its `status` is the CoAP code read as a number, 404 for 4.04."""
    code = error.code if isinstance(error, CoapError) else error.kind.answers.coap
    body = {
        "type": f"urn:aemos:error:{error.reason}",
        "title": error.reason.replace("_", " ").capitalize(),
        "status": code // 32 * 100 + code % 32,
        "detail": error.detail,
        "reason": error.reason,
        "errors": error.errors,
    }
    size1 = MAX_READING_BYTES if code == _TOO_LARGE else None
    return Answer(code, msgspec.json.encode(body), error.retry_after, size1)
