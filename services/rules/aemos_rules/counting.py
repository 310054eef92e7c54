"""What the runs of one chain amount to. Pure."""

from __future__ import annotations

from collections import deque
from typing import Any

KEPT_IDLE = 20


class Activity:
    """Of one chain, since it was last written; `errors_in_row` since it last succeeded."""

    __slots__ = ("errors_in_row", "failed", "fired", "idle", "not_recorded", "second", "second_count", "stopped")

    def __init__(self) -> None:
        self.fired = self.stopped = self.failed = self.not_recorded = self.errors_in_row = 0
        self.second = self.second_count = 0
        self.idle: deque[tuple[Any, Any]] = deque(maxlen=KEPT_IDLE)

    def note(self, reading: Any, result: Any) -> None:
        """A run that changed nothing, as far as is known yet."""
        self.errors_in_row = 0
        self.idle.append((reading, result))
        if result.outcome == "fired":
            self.fired += 1
        else:
            self.stopped += 1

    def note_error(self) -> None:
        """A run that failed."""
        self.failed += 1
        self.errors_in_row += 1

    @property
    def is_fresh(self) -> bool:
        """Something happened since it was last written."""
        return bool(self.fired or self.stopped or self.failed)
