"""Where every refused message of a device ends, on whatever protocol: ingest keeps it, or counts it."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from aemos.v1 import rejection_pb2, rejection_pb2_grpc
from aemos_core.batching import Batcher
from aemos_core.errors import AemosError, Kind, cut
from aemos_core.times import now_ms, to_timestamp

from aemos_gateway.device_auth import Device

MOST_A_SECOND = 10
"""Refusals of one device that are kept with their reason; more are counted."""
_MOST_WAITING = 5_000
_MOST_IN_CALL = 500
_MOST_ERRORS = 20
_SHOWN = 200
_LOOKED_AT = 1_000
_TOKEN = re.compile(r"(?<![\w-])[\w-]{32}(?![\w-])")
"""What a device token looks like."""
_NOT_FOR_GOOD = {Kind.UNAVAILABLE, Kind.INTERNAL}

Done = Callable[[BaseException | None], None]


class _Refusal(NamedTuple):
    device_id: int
    kept: rejection_pb2.NewRejection | None


class Rejections:
    """Hands refusals to ingest in natural batches, beside what answers the device."""

    def __init__(self, rejections: rejection_pb2_grpc.RejectionServiceAsyncStub) -> None:
        self._stub = rejections
        self._second = 0
        self._kept: Counter[int] = Counter()
        self._owed: Counter[int] = Counter()
        """Refusals that could not be recorded: they are counted with the next ones."""
        self._batcher: Batcher[_Refusal, None] = Batcher(
            self._record, max_batch=_MOST_IN_CALL, max_waiting=_MOST_WAITING
        )

    def record(
        self, device: Device, protocol: str, payload: bytes, error: AemosError, done: Done | None = None
    ) -> None:
        """Notes that a message of a device was refused for good; what may succeed later is no refusal.

        `done` is called once, on the loop: with None when the refusal is durable, or with why it is not.
        """
        if error.kind in _NOT_FOR_GOOD:
            return
        kept = None
        if error.kind is not Kind.BUSY and self._may_keep(device.device_id):
            kept = rejection_pb2.NewRejection(
                device_id=device.device_id, rejection=_rejection(protocol, payload, error)
            )
        done = done or partial(self._owe, device.device_id)
        try:
            self._batcher.put(_Refusal(device.device_id, kept), done)
        except AemosError as full:
            done(full)

    async def drain(self) -> None:
        """Waits until nothing is left."""
        await self._batcher.drain()

    def _may_keep(self, device_id: int) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            self._kept.clear()
        self._kept[device_id] += 1
        return self._kept[device_id] <= MOST_A_SECOND

    def _owe(self, device_id: int, result: BaseException | None) -> None:
        if result is not None:
            self._owed[device_id] += 1

    async def _record(self, refusals: list[_Refusal]) -> list[None]:
        owed, self._owed = self._owed, Counter()
        counts = owed + Counter(refusal.device_id for refusal in refusals if refusal.kept is None)
        request = rejection_pb2.RecordRejectionsRequest(
            rejections=[refusal.kept for refusal in refusals if refusal.kept is not None],
            counts=[rejection_pb2.RejectionCount(device_id=one, count=count) for one, count in counts.items()],
        )
        try:
            await self._stub.RecordRejections(request)
        except BaseException:
            self._owed.update(owed)
            raise
        return [None] * len(refusals)


def _rejection(protocol: str, payload: bytes, error: AemosError) -> rejection_pb2.Rejection:
    errors = [rejection_pb2.RejectionError(loc=cut(e.loc), message=cut(e.message)) for e in error.errors[:_MOST_ERRORS]]
    return rejection_pb2.Rejection(
        rejected_at=to_timestamp(now_ms()),
        protocol=protocol,
        reason=error.reason,
        detail=cut(error.detail),
        errors=errors,
        payload=beginning(payload),
    )


def beginning(payload: bytes) -> str:
    """How a message began, as text: without what looks like a token, which a device may send in the wrong place."""
    text = payload[:_LOOKED_AT].decode(errors="replace").replace("\0", "\ufffd")
    return _TOKEN.sub("(a token?)", text)[:_SHOWN]
