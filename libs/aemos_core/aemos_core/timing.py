"""When a chain runs by itself: by cron, at a fixed interval, or once. Pure: no clock, no store.

Times are milliseconds since 1970 UTC, and everything is due at a whole second.
"""

from __future__ import annotations

from dataclasses import dataclass

from aemos_core import cron
from aemos_core.errors import FieldError

SECOND_MS = 1_000
_END_MS = 253_402_300_800_000
"""The year 10000, which no time of the contract can name."""
_LONGEST_INTERVAL = 366 * 24 * 3_600

MISFIRE_POLICIES = ("run-once", "skip", "run-all")
OVERLAP_POLICIES = ("allow", "skip", "queue")


@dataclass(frozen=True, slots=True)
class Timing:
    """Exactly one of `cron_expression` (in `timezone`), `interval_seconds` (counted to the anchor) and `run_at_ms`."""

    cron_expression: str = ""
    timezone: str = "UTC"
    interval_seconds: int = 0
    interval_anchor_ms: int = 0
    run_at_ms: int = 0

    def next_after(self, after_ms: int) -> int | None:
        """The first instant after this one; None when there is none, or the schedule cannot be read."""
        if self.interval_seconds > 0:
            period = self.interval_seconds * SECOND_MS
            due = after_ms + period - (after_ms - self.interval_anchor_ms) % period
            return due if due < _END_MS else None
        if self.run_at_ms:
            return self.run_at_ms if self.run_at_ms > after_ms else None
        try:
            return cron.next_due(self.cron_expression, self.timezone, after_ms // SECOND_MS * SECOND_MS)
        except (ValueError, OverflowError):  # what is due, or shown there, is no year from 1 to 9999
            return None

    def latest(self, after_ms: int, until_ms: int) -> int | None:
        """The latest instant in (after, until]: found by halving, for a second's schedule has many in an hour."""
        low, step = until_ms, SECOND_MS
        while low > after_ms:
            low, step = max(after_ms, until_ms - step), step * 2
            due = self.next_after(low)
            if due is not None and due <= until_ms:
                return self._last_from(due, until_ms)
        return None

    def last(self, most: int, after_ms: int, until_ms: int) -> list[int]:
        """At most so many of the latest instants in (after, until], the first of them first."""
        found: list[int] = []
        while len(found) < most and (due := self.latest(after_ms, until_ms)) is not None:
            found.append(due)
            until_ms = due - 1
        return found[::-1]

    def check(self) -> list[FieldError]:
        """Why it could never run as its author means, field by field."""
        given = {
            "cronExpression": self.cron_expression,
            "intervalSeconds": self.interval_seconds,
            "runAt": self.run_at_ms,
        }
        names = [name for name, value in given.items() if value]
        if len(names) != 1:
            message = "exactly one of cronExpression, intervalSeconds and runAt is needed"
            return [FieldError(name, message) for name in names or ["cronExpression"]]
        if self.cron_expression:
            return cron.mistakes(self.cron_expression, self.timezone)
        errors = [FieldError("timezone", wrong)] if (wrong := cron.wrong_zone(self.timezone)) else []
        if self.interval_seconds and not 1 <= self.interval_seconds <= _LONGEST_INTERVAL:
            errors.append(FieldError("intervalSeconds", f"must be 1 to {_LONGEST_INTERVAL}"))
        return errors

    def _last_from(self, due: int, until_ms: int) -> int:
        # `due` is an instant, and after `high` there is none until `until_ms`.
        high = until_ms
        while high - due >= SECOND_MS:
            middle = due + (high - due) // (2 * SECOND_MS) * SECOND_MS
            later = self.next_after(middle)
            if later is not None and later <= until_ms:
                due = later
            elif middle == due:
                break
            else:
                high = middle
        return due


def check_policies(misfire: str, overlap: str) -> list[FieldError]:
    """`misfirePolicy` and `overlapPolicy`, when they are not ones that there are."""
    known = (("misfirePolicy", misfire, MISFIRE_POLICIES), ("overlapPolicy", overlap, OVERLAP_POLICIES))
    return [FieldError(loc, f"must be one of {', '.join(all_)}") for loc, value, all_ in known if value not in all_]
