"""Bodies of requests: read within a time and a size, and inflated within the same size."""

from __future__ import annotations

import asyncio
import zlib

from aemos_core.errors import AemosError, Kind, malformed
from starlette.types import Receive

BODY_SECONDS = 10.0
_TOO_LATE = "the body is late"
_GZIP = 31
"""zlib's window bits for a gzip header and the largest window (RFC 1952)."""


def too_large(most: int) -> AemosError:
    """More bytes than a body may have."""
    return AemosError(Kind.TOO_LARGE, f"a body has at most {most} bytes")


async def read(receive: Receive, most: int) -> bytes:
    """The whole body; TOO_LARGE as soon as it is over `most` bytes, 408 when it does not begin or end in time."""
    task = asyncio.current_task()
    assert task is not None  # a request is served by a task
    # A tenth of what asyncio.timeout costs; each reading comes this way.
    timer = asyncio.get_running_loop().call_later(BODY_SECONDS, task.cancel, _TOO_LATE)
    try:
        body, more = await _part(receive)
        if more:
            body = await _more(body, receive, most)
    except asyncio.CancelledError as cancelled:
        if cancelled.args != (_TOO_LATE,):
            raise
        task.uncancel()
        raise AemosError(Kind.MALFORMED, "the body did not arrive in time", reason="request_timeout") from None
    finally:
        timer.cancel()
    if len(body) > most:
        raise too_large(most)
    return body


async def _part(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise malformed("the body ended early")
    return message.get("body", b""), message.get("more_body", False)


async def _more(begun: bytes, receive: Receive, most: int) -> bytes:
    body, more = bytearray(begun), True
    while more and len(body) <= most:
        part, more = await _part(receive)
        body += part
    return bytes(body)


def unpack(body: bytes, encoding: bytes, most: int) -> bytes:
    """The body before its Content-Encoding: gzip, identity or none; 415 for any other."""
    named = encoding.strip().lower()
    if named in (b"gzip", b"x-gzip"):
        return inflate(body, most)
    if named not in (b"identity", b""):
        raise AemosError(Kind.INVALID, "only gzip is understood", reason="unsupported_encoding")
    return body


def inflate(body: bytes, most: int) -> bytes:
    """The bytes in a gzip body; TOO_LARGE before more than `most` of them exist, MALFORMED when it is none."""
    inflater = zlib.decompressobj(_GZIP)
    try:
        plain = inflater.decompress(body, most + 1)
    except zlib.error:
        raise malformed("the body is not gzip") from None
    if len(plain) > most:
        raise too_large(most)
    if not inflater.eof or inflater.unused_data:
        raise malformed("the body is not one whole gzip member")
    return plain
