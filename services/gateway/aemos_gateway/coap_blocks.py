"""Bodies that come in blocks (RFC 7959, Block1): put together within bounds. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import NamedTuple

from aemos_core.errors import AemosError, Kind

from aemos_gateway.coap_answers import CoapError
from aemos_gateway.readings import MAX_READING_BYTES

MOST_TRANSFERS = 256
"""Bodies in the making per process, 16 MiB; one more ends the one that was quiet for longest."""
QUIET_SECONDS = 93.0
"""MAX_TRANSMIT_WAIT (RFC 7252, 4.8.2)."""


class Block(NamedTuple):
    """The Block1 option of a request with its payload; `exponent` says blocks of 2 ** (exponent + 4) bytes."""

    number: int
    more: bool
    exponent: int
    payload: bytes
    size1: int | None

    @property
    def start(self) -> int:
        """Where the block belongs in the body."""
        return self.number << (self.exponent + 4)


class Blocks:
    """The transfers that have begun, each under the key of its sender."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._transfers: dict[Hashable, tuple[bytearray, float]] = {}

    def add(self, key: Hashable, block: Block) -> bytes | None:
        """The body with its last block, None before it.

        Raises TOO_LARGE as soon as the body cannot fit, 4.00 for a block of the wrong size, 4.08 after a gap.
        """
        body = self._take(key, block)
        _check_size(block)
        if block.start != len(body):
            raise CoapError("4.08", "incomplete", f"{len(body)} bytes came, this block starts at {block.start}")
        body += block.payload
        if not block.more:
            return bytes(body)
        self._keep(key, body)
        return None

    def _take(self, key: Hashable, block: Block) -> bytearray:
        body, since = self._transfers.pop(key, (bytearray(), 0.0))
        if block.number == 0 or self._clock() - since > QUIET_SECONDS:
            return bytearray()
        return body

    def _keep(self, key: Hashable, body: bytearray) -> None:
        now = self._clock()
        self._transfers[key] = (body, now)
        for oldest, (_, since) in list(self._transfers.items()):
            if len(self._transfers) <= MOST_TRANSFERS and now - since <= QUIET_SECONDS:
                return
            del self._transfers[oldest]


def _check_size(block: Block) -> None:
    if max(block.size1 or 0, block.start + len(block.payload)) > MAX_READING_BYTES:
        raise AemosError(Kind.TOO_LARGE, f"a reading has at most {MAX_READING_BYTES} bytes")
    size = 1 << (block.exponent + 4)
    if block.exponent == 7 or len(block.payload) > size or (block.more and len(block.payload) < size):
        raise CoapError("4.00", "malformed", "the block's size is not the one that Block1 tells")
