"""Components wait here for what comes first: their end, time, or a hint."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aemos_core.errors import AemosError

log = logging.getLogger("aemos.sweep")


async def wait(stop: asyncio.Event, seconds: float | None, *wakers: asyncio.Event) -> bool:
    """Waits for `stop`, or another event, so long at the most (None: for ever); whether `stop` is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in (stop, *wakers)]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pending in waits:
            pending.cancel()
    return stop.is_set()


class Sweep:
    """A component: takes a step each so many seconds, and another at once after one that did something."""

    def __init__(self, seconds: float, step: Callable[[], Awaitable[object]], meanwhile: str) -> None:
        """`meanwhile` is how things are when a step fails, such as "reports stay"; the next is tried in its time."""
        self._seconds = seconds
        self._step = step
        self._meanwhile = meanwhile

    async def run(self, stop: asyncio.Event) -> None:
        """Sweeps until told to stop."""
        while not await wait(stop, self._seconds):
            try:
                while await self._step() and not stop.is_set():
                    pass
            except AemosError as error:
                log.warning("%s for now: %s", self._meanwhile, error.detail)
