"""Which devices are here, as ingest is told: under a lease, in natural batches."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from uuid import uuid4

from aemos.v1 import connectivity_pb2, connectivity_pb2_grpc
from aemos_core.errors import AemosError
from aemos_core.waiting import wait

log = logging.getLogger("aemos.gateway")

RENEW_SECONDS = 3.0
REPORT_SECONDS = 3.0
"""Before the lease of 10 s ends, one report may hang and another one be made."""
AGAIN_SECONDS = 1.0
_MOST_IN_CALL = 1_000


class Presence:
    """A component: reports what changed, at once and never twice, and renews the lease of this process.

    At the end it says nothing: devices that connect elsewhere before the lease is over were never away.
    """

    def __init__(
        self, connectivity: connectivity_pb2_grpc.ConnectivityServiceAsyncStub, silent_seconds: float = 300.0
    ) -> None:
        self.gateway_id = uuid4().hex
        self._connectivity = connectivity
        self._silent_seconds = silent_seconds
        self._again_seconds = silent_seconds / 10
        self._open: Counter[int] = Counter()
        self._reported: set[int] = set()
        self._unsure: set[int] = set()
        self._heard: set[int] = set()
        self._told: dict[int, float] = {}
        self._to_tell: set[int] = set()
        self._look_at_heard = 0.0
        self._changed = asyncio.Event()

    @property
    def open(self) -> set[int]:
        """Devices that have a connection here."""
        return set(self._open)

    def came(self, device_id: int) -> None:
        """A connection of a device is open."""
        self._open[device_id] += 1
        self._look_at(device_id)

    def went(self, device_id: int) -> None:
        """A connection of a device is gone."""
        self._open[device_id] -= 1
        if not self._open[device_id]:
            del self._open[device_id]
        self._look_at(device_id)

    @contextmanager
    def connected(self, device_id: int) -> Iterator[None]:
        """A connection of a device for as long as the block lasts."""
        self.came(device_id)
        try:
            yield
        finally:
            self.went(device_id)

    def heard(self, device_id: int) -> None:
        """A device sent something without a connection: on the hot path."""
        self._heard.add(device_id)
        if device_id not in self._told:
            self._to_tell.add(device_id)
            self._changed.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Reports changes as they come, and every 3 s that this process lives."""
        while not stop.is_set():
            try:
                await self.report()
            except AemosError as error:
                log.warning("connections are not reported: %s", error.detail)
                await wait(stop, AGAIN_SECONDS)
            else:
                await wait(stop, RENEW_SECONDS, self._changed)

    async def report(self) -> None:
        """One call with what ingest does not know yet, as it is now."""
        self._changed.clear()
        looked_at = set(islice(self._unsure, _MOST_IN_CALL))
        connected = {one for one in looked_at if one in self._open and one not in self._reported}
        disconnected = {one for one in looked_at if one not in self._open}
        heard = self._heard_now()
        request = connectivity_pb2.ReportConnectionsRequest(
            gateway_id=self.gateway_id,
            connected=connected,
            disconnected=disconnected,
            heard=heard,
            heard_for_ms=int((self._silent_seconds + self._again_seconds) * 1000),
        )
        self._unsure -= looked_at
        try:
            answer = await self._connectivity.ReportConnections(request, timeout=REPORT_SECONDS)
        except BaseException:  # it may have been taken or not, or have begun a new lease: all are reported again
            self._unsure |= looked_at | self._reported
            self._reported.clear()
            self._to_tell.update(heard)
            for device_id in heard:
                del self._told[device_id]
            raise
        self._reported = (set() if answer.is_new else self._reported - disconnected) | connected
        if answer.is_new:
            self._unsure.update(self._open.keys() - self._reported)
        if self._unsure or self._to_tell:
            self._changed.set()

    def _look_at(self, device_id: int) -> None:
        self._unsure.add(device_id)
        self._changed.set()

    def _heard_now(self) -> list[int]:
        now = time.monotonic()
        if now >= self._look_at_heard:
            self._look_at_heard = now + RENEW_SECONDS
            self._tell_again(now)
        heard = list(islice(self._to_tell, _MOST_IN_CALL))
        self._to_tell.difference_update(heard)
        self._told.update(dict.fromkeys(heard, now))
        return heard

    def _tell_again(self, now: float) -> None:
        """Of those who go on sending, before ingest's time for them runs out; only who is new is told of at once."""
        self._told = {one: at for one, at in self._told.items() if at > now - self._silent_seconds}
        due = now - self._again_seconds
        self._to_tell.update(one for one in self._heard if self._told.get(one, 0.0) <= due)
        self._heard.clear()
