"""What came lately, so that it is not done twice: two generations, no timer, a bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

KEPT_SECONDS = 62.0
"""A confirmable message is sent again for at most 45 s (MAX_TRANSMIT_SPAN; RFC 7252, 4.8.2)."""


class Recent(Generic[K, V]):
    """Remembers a value for `seconds` to twice that; shorter when more than `most` come in `seconds`."""

    def __init__(self, most: int, seconds: float = KEPT_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._new: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self._turns_at = clock() + seconds

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def get(self, key: K) -> V | None:
        """What was put, while it is remembered."""
        if self._clock() >= self._turns_at:
            self._turn()
        value = self._new.get(key)
        return self._old.get(key) if value is None else value

    def put(self, key: K, value: V) -> None:
        """Remembers it from now."""
        if len(self._new) >= self._most or self._clock() >= self._turns_at:
            self._turn()
        self._new[key] = value

    def _turn(self) -> None:
        now = self._clock()
        self._old = self._new if now < self._turns_at + self._seconds else {}
        self._new = {}
        self._turns_at = now + self._seconds
