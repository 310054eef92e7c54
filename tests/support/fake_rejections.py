"""What edges refuse, in a list."""

from __future__ import annotations

from dataclasses import dataclass

from aemos_core.errors import AemosError
from aemos_gateway.device_auth import Device
from aemos_gateway.rejections import Done, Rejections


@dataclass
class Refused:
    """A message that was refused."""

    device_uuid: str
    protocol: str
    payload: bytes
    reason: str


class FakeRejections(Rejections):
    """Records at once; while `holding`, when `release` is called; never while `broken`."""

    def __init__(self) -> None:
        self.all: list[Refused] = []
        self.holding = False
        self.broken: AemosError | None = None
        self._waiting: list[Done] = []

    def record(
        self, device: Device, protocol: str, payload: bytes, error: AemosError, done: Done | None = None
    ) -> None:
        self.all.append(Refused(device.device_uuid, protocol, payload, error.reason))
        if done is not None:
            self._waiting.append(done)
        if not self.holding:
            self.release()

    def release(self) -> None:
        """Answers whoever waits."""
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done(self.broken)
