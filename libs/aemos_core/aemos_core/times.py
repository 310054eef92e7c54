"""Times: milliseconds since 1970 UTC inside, RFC 3339 with milliseconds in UTC outside."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from google.protobuf.timestamp_pb2 import Timestamp

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_NAIVE = datetime(1970, 1, 1)
_MILLISECOND = timedelta(milliseconds=1)


def now_ms() -> int:
    """The wall clock, in milliseconds."""
    return time.time_ns() // 1_000_000


@lru_cache(maxsize=1024)  # a batch has one time, and under load many readings share a millisecond
def rfc3339(ms: int) -> str:
    """Such as "2026-01-20T10:30:00.123Z"."""
    moment = _EPOCH_NAIVE + ms * _MILLISECOND
    return f"{moment.isoformat(timespec='milliseconds')}Z"


def parse_rfc3339(text: str) -> int:
    """Milliseconds of an RFC 3339 time with its offset; ValueError otherwise. Finer fractions are cut."""
    text = text.upper()  # T and Z may be small
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None or "T" not in text:
        raise ValueError("not an RFC 3339 time with an offset")
    return (moment - _EPOCH) // _MILLISECOND


def to_timestamp(ms: int) -> Timestamp:
    """The time as the contract has it."""
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)
