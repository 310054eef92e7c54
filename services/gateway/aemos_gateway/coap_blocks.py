"""Bodies that come in blocks (RFC 7959, Block1): put together within bounds. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

from aemos_core.errors import AemosError, Kind
from aiocoap.optiontypes import BlockOption

from aemos_gateway.coap_answers import CoapError
from aemos_gateway.coap_recent import Recent
from aemos_gateway.readings import MAX_READING_BYTES

MOST_TRANSFERS = 256
"""Bodies in the making per generation and process, 32 MiB in all."""
QUIET_SECONDS = 93.0
"""MAX_TRANSMIT_WAIT (RFC 7252, 4.8.2)."""


class Blocks:
    """The transfers that have begun, each under the key of its sender."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._begun: Recent[Hashable, bytearray] = Recent(MOST_TRANSFERS, QUIET_SECONDS, clock)

    def add(self, key: Hashable, block: BlockOption.BlockwiseTuple, payload: bytes, announced: int = 0) -> bytes | None:
        """The body with its last block, None before it; `announced` is its size, if that is known (Size1).

        Raises TOO_LARGE as soon as the body cannot fit, 4.00 for a block of the wrong size, 4.08 after a gap.
        """
        body = (block.block_number and self._begun.get(key)) or bytearray()
        if max(announced, block.start + len(payload)) > MAX_READING_BYTES:
            raise AemosError(Kind.TOO_LARGE, f"a reading has at most {MAX_READING_BYTES} bytes")
        if block.is_bert or len(payload) > block.size or (block.more and len(payload) < block.size):
            raise CoapError("4.00", "malformed", "the block's size is not the one that Block1 tells")
        if block.start != len(body):
            raise CoapError("4.08", "incomplete", f"{len(body)} bytes came, this block starts at {block.start}")
        body += payload
        self._begun.put(key, body if block.more else bytearray())
        return None if block.more else bytes(body)
