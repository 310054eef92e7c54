"""Which device a token proves."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from dataclasses import dataclass
from typing import TypeAlias

from aemos.v1 import identity_pb2, identity_pb2_grpc
from aemos_core.batching import Batcher
from aemos_core.errors import AemosError, unauthenticated
from aemos_core.waiting import wait

log = logging.getLogger("aemos.gateway")

_POLL_SECONDS = 3.0
_KNOWN_SECONDS = 300.0
_UNKNOWN_SECONDS = 5.0
_MOST_TOKENS = 200_000
_LONGEST_TOKEN = 512
_MOST_ASKED = 500
_MOST_WAITING = 20_000
_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Device:
    """The device that a token proved."""

    token_id: int
    organization_id: int
    device_id: int
    device_uuid: str


_Entry: TypeAlias = tuple[Device | None, float]
"""What a token proves, and until when that is believed, by the monotonic clock."""


class DeviceAuth:
    """A component: finds the device behind a token, from memory when it was asked before.

    `registry:changed` and a poll every 3 s drop what changed, so a revoked token works no longer than that; one that
    expires is asked about again when it does.
    """

    def __init__(self, identity: identity_pb2_grpc.IdentityServiceAsyncStub) -> None:
        self._identity = identity
        self._asked: Batcher[bytes, _Entry] = Batcher(
            self._ask, max_batch=_MOST_ASKED, max_waiting=_MOST_WAITING, patience=_PATIENCE_SECONDS
        )
        self._known: dict[bytes, _Entry] = {}
        self._poll_now = asyncio.Event()

    def known(self, token: bytes) -> Device | None:
        """The device, only if it is in memory: for hot paths, without a hash or a wait."""
        entry = self._known.get(token)
        return entry[0] if entry is not None and entry[1] > time.monotonic() else None

    async def resolve(self, token: bytes) -> Device:
        """The device; UNAUTHENTICATED when the token proves none."""
        entry = self._known.get(token)
        if entry is None or entry[1] <= time.monotonic():
            if not 0 < len(token) <= _LONGEST_TOKEN:
                raise unauthenticated()
            entry = await self._asked.submit(token)
        if entry[0] is None:
            raise unauthenticated()
        return entry[0]

    def look_again(self, _: bytes = b"") -> None:
        """The registry changed, or we may have missed that it did."""
        self._poll_now.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Drops what changed."""
        since = 0
        while not stop.is_set():
            self._poll_now.clear()
            try:
                request = identity_pb2.ListRegistryChangesRequest(since_ms=since)
                answer = await self._identity.ListRegistryChanges(request, wait_for_ready=True)
                self._forget(set(answer.device_ids))
                since = answer.now_ms
            except AemosError as error:
                log.warning("registry changes: %s", error.detail)
            await wait(stop, _POLL_SECONDS, self._poll_now)

    async def _ask(self, tokens: list[bytes]) -> list[_Entry]:
        digests = [hashlib.sha256(token).digest() for token in tokens]
        request = identity_pb2.ResolveDeviceTokensRequest(token_sha256=digests)
        answer = await self._identity.ResolveDeviceTokens(request)
        fresh = dict(zip(tokens, map(_entry, answer.devices), strict=True))
        if len(self._known) + len(fresh) > _MOST_TOKENS:
            self._known.clear()
        self._known |= fresh
        return [fresh[token] for token in tokens]

    def _forget(self, device_ids: set[int]) -> None:
        if not device_ids:
            return
        stale = [token for token, (device, _) in self._known.items() if device and device.device_id in device_ids]
        for token in stale:
            del self._known[token]


def _entry(found: identity_pb2.DeviceIdentity) -> _Entry:
    if not found.token_id:
        return None, time.monotonic() + _UNKNOWN_SECONDS
    device = Device(found.token_id, found.organization_id, found.device_id, found.device_uuid)
    return device, time.monotonic() + min(found.valid_for_ms / 1000 or _KNOWN_SECONDS, _KNOWN_SECONDS)
