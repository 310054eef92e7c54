"""Components wait here for what comes first: their end, time, or a hint."""

from __future__ import annotations

import asyncio


async def wait(stop: asyncio.Event, seconds: float | None, *wakers: asyncio.Event) -> bool:
    """Waits for `stop`, or another event, so long at the most (None: for ever); whether `stop` is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in (stop, *wakers)]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pending in waits:
            pending.cancel()
    return stop.is_set()
