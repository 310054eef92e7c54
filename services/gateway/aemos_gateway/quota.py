"""How many readings a device and an organization may send in a second. Pure: time comes as an argument."""

from __future__ import annotations

from aemos_core.errors import AemosError, Kind


class Quota:
    """Counts readings in each second of the clock, at one gateway process; what it remembers ends with the second."""

    def __init__(self, per_device: int, per_organization: int) -> None:
        self._per_device = per_device
        self._per_organization = per_organization
        self._second = 0
        self._devices: dict[int, int] = {}
        self._organizations: dict[int, int] = {}

    def take(self, device_id: int, organization_id: int, readings: int, now: float) -> None:
        """Counts readings at `now` (seconds); BUSY, with the limit in `reason`, when they are too many."""
        if int(now) != self._second:
            self._second = int(now)
            self._devices.clear()
            self._organizations.clear()
        of_device = self._devices.get(device_id, 0) + readings
        of_organization = self._organizations.get(organization_id, 0) + readings
        # A batch that is larger than a second's allowance would never get through: it takes a second of its own.
        if of_device > max(self._per_device, readings):
            raise _busy("device", self._per_device)
        if of_organization > max(self._per_organization, readings):
            raise _busy("organization", self._per_organization)
        self._devices[device_id] = of_device
        self._organizations[organization_id] = of_organization


def _busy(whose: str, limit: int) -> AemosError:
    detail = f"more than {limit} readings in a second from one {whose}"
    return AemosError(Kind.BUSY, detail, reason=f"{whose}_rate_limit", retry_after=1)
