"""What the notify worker leans on, without a queue behind it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aemos_core.database import Database
from aemos_core.outbox import Outbox, Row
from aemos_notify import subscription_store, templates
from aemos_notify.channels import Letter
from aemos_notify.dispatch import Dispatcher
from aemos_notify.templates import Message


class KeptOutbox(Outbox):
    """Rows are written and kept, not sent."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, subscription_store.outbox)
        self.rows: list[Row] = []

    def committed(self, rows: Sequence[Row]) -> None:
        self.rows += rows


async def nothing() -> None:
    """It takes no time."""


class FakeChannel:
    """Takes letters, or fails as it is told; `before` is awaited at each attempt."""

    signs = True

    def __init__(self) -> None:
        self.letters: list[Letter] = []
        self.failure: Exception | None = None
        self.before: Callable[[], Awaitable[Any]] = nothing

    async def check_target(self, target: str) -> None:
        """Any will do."""

    def message(self, subject: str, body: str, notification: Mapping[str, Any]) -> Message:
        return templates.text(subject, body, notification)

    async def send(self, letter: Letter) -> str:
        await self.before()
        if self.failure is not None:
            raise self.failure
        self.letters.append(letter)
        return "taken"


async def labels(organization_id: int, uuids: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
    """Every device stands in Hamburg."""
    return {uuid: {"site": "hamburg"} for uuid in uuids}


def dispatcher(database: Database) -> Dispatcher:
    """One that adds deliveries and sends nothing."""
    return Dispatcher(database, KeptOutbox(database), labels)
