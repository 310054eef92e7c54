"""A schedule in words, so that a person sees what was typed."""

from __future__ import annotations

from functools import lru_cache

from aemos_core.cron import six_fields
from aemos_core.times import rfc3339
from aemos_core.timing import Timing
from cron_descriptor import Options, get_description

_UNITS = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


@lru_cache(4_096)
def in_words(timing: Timing) -> str:
    """Such as "At 02:30, Monday through Friday (Europe/Berlin)"."""
    if timing.interval_seconds:
        return f"Every {_period(timing.interval_seconds)}, one of them at {rfc3339(timing.interval_anchor_ms)}"
    if timing.run_at_ms:
        return f"Once, at {rfc3339(timing.run_at_ms)}"
    options = Options()
    options.use_24hour_time_format = True
    try:
        return f"{get_description(six_fields(timing.cron_expression), options)} ({timing.timezone})"
    except Exception:  # the library's own errors and, for what it does not know, any other
        return f"{timing.cron_expression} ({timing.timezone})"


def _period(seconds: int) -> str:
    parts = []
    for size, name in _UNITS:
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count} {name}{'s' if count > 1 else ''}")
    return " ".join(parts)
