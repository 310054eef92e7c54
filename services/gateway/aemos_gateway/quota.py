"""How many readings a device and an organization may send in a second. Pure: time comes as an argument."""

from __future__ import annotations

import math

from aemos_core.errors import AemosError, Kind

_BURST_SECONDS = 1.0
_MOST_KEYS = 100_000
"""So many buckets before those that are full again are forgotten."""


class _Buckets:
    """A token bucket for each key, which holds a second's readings; kept as the time when it is full again.

    A message is let in while its bucket holds anything, and what is missing is owed: so whether it is let in is known
    before it is read, and a batch that is larger than the bucket is not refused for ever.
    """

    def __init__(self, whose: str, per_second: int) -> None:
        self._interval = 1.0 / per_second
        self._detail = f"more than {per_second} readings a second from one {whose}"
        self._reason = f"{whose}_rate_limit"
        self._full_at: dict[int, float] = {}
        self._most = _MOST_KEYS

    def check(self, key: int, now: float) -> None:
        wait = self._full_at.get(key, now) - now - _BURST_SECONDS
        if wait >= 0:
            raise AemosError(Kind.BUSY, self._detail, reason=self._reason, retry_after=max(1, math.ceil(wait)))

    def spend(self, key: int, readings: int, now: float) -> None:
        self._full_at[key] = max(self._full_at.get(key, now), now) + readings * self._interval
        if len(self._full_at) > self._most:
            self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now}
            self._most = max(_MOST_KEYS, 2 * len(self._full_at))


class Quota:
    """Both limits, at one gateway process. Times are seconds."""

    def __init__(self, per_device: int, per_organization: int) -> None:
        self._devices = _Buckets("device", per_device)
        self._organizations = _Buckets("organization", per_organization)

    def check(self, device_id: int, organization_id: int, now: float) -> None:
        """BUSY, with the limit in `reason` and the time to wait, when nothing may come now."""
        self._devices.check(device_id, now)
        self._organizations.check(organization_id, now)

    def spend(self, device_id: int, organization_id: int, readings: int, now: float) -> None:
        """Counts what was let in."""
        self._devices.spend(device_id, readings, now)
        self._organizations.spend(organization_id, readings, now)
