"""What the notify worker leans on, without a queue behind it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aemos.v1 import subscription_pb2 as pb
from aemos.v1.job_pb2 import SendDelivery
from aemos_core.database import Database
from aemos_core.errors import invalid
from aemos_core.identity import Caller, set_caller
from aemos_core.jobs import Job
from aemos_core.notification_log import Logged, LogId
from aemos_core.outbox import Outbox, Row
from aemos_core.records import own
from aemos_core.times import now_ms
from aemos_notify import subscription_store, templates
from aemos_notify.channels import ChannelSender, Letter
from aemos_notify.dispatch import DeliverJob, Dispatcher, TryAgain, send_due
from aemos_notify.notification_api import NotifyServicer
from aemos_notify.subscription_api import SubscriptionServicer
from aemos_notify.subscription_store import secrets_of
from aemos_notify.templates import EXAMPLE, Message


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


class PushChannel:
    """A channel that AEMOS does not have: all there is to one."""

    signs = False

    async def check_target(self, target: str) -> None:
        if not target.startswith("token-"):
            raise invalid("target", "must be a device's token")

    def message(self, subject: str, body: str, notification: Mapping[str, Any]) -> Message:
        return templates.text(subject, "-", notification)

    async def send(self, letter: Letter) -> str:
        return f"pushed {letter.message.subject} to {letter.target}"


class NotifyWorker:
    """Notify's worker on a database, with one channel that is a list."""

    def __init__(self, database: Database) -> None:
        set_caller(Caller(1, 7, "admin", "token"))
        self.outbox, self.channel = KeptOutbox(database), FakeChannel()
        channels: dict[str, ChannelSender] = {"email": self.channel, "webhook": self.channel, "push": PushChannel()}
        self.database = database
        self.subscriptions = SubscriptionServicer(database, self.outbox, channels)
        self.api = NotifyServicer(database, None, None, None, None)  # type: ignore[arg-type]  # of it only the read cursors
        self._dispatcher = Dispatcher(database, self.outbox, labels)
        self._job = DeliverJob(database, channels, None)  # type: ignore[arg-type]  # without receipts no Redis

    async def subscribe(self, **changes: Any) -> pb.Subscription:
        values = {"name": "s", "channel": "email", "target": "a@example.org", **changes}
        return await self.call("CreateSubscription", **values)

    async def call(self, method: str, **request: Any) -> Any:
        """The answer of SubscriptionService."""
        return await getattr(self.subscriptions, method)(getattr(pb, f"{method}Request")(**request), None)

    async def deliveries(self, **request: Any) -> list[pb.Delivery]:
        """The newest, at most 1000."""
        return list((await self.call("ListDeliveries", page_size=1_000, **request)).deliveries)

    async def secrets(self, subscription: pb.Subscription, now: int) -> list[str]:
        """What signs at this time."""
        async with self.database.read() as connection:
            return secrets_of(await own(connection, subscription_store.subscription, subscription.id), now)

    async def sweep(self, now: int) -> int:
        """Sends what is due; how many there were."""
        before = len(self.outbox.rows)
        await send_due(self.database, self.outbox, now)
        return len(self.outbox.rows) - before

    async def happen(self, number: int) -> None:
        """So many notifications at once."""
        body, now = json.dumps({k: v for k, v in EXAMPLE.items() if k != "id"}), now_ms()
        entries = [Logged(LogId(now, 100 + seq), "alarm", (), body) for seq in range(number)]
        await self._dispatcher.record(1, entries)

    async def happens(self, seq: int = 1, ms: int = 0, **changes: Any) -> None:
        body: Mapping[str, Any] = {k: v for k, v in {**EXAMPLE, **changes}.items() if k != "id"}
        await self._dispatcher.record(1, [Logged(LogId(ms or now_ms(), seq), body["type"], (), json.dumps(body))])

    async def work(self) -> list[str]:
        """Does every job that is queued; what each raised."""
        rows, self.outbox.rows = self.outbox.rows, []
        return [raised for row in rows if (raised := await self.do(row))]

    async def do(self, row: Row) -> str:
        """Does a job; what it raised."""
        assert SendDelivery.FromString(row.payload).delivery_id
        try:
            await self._job(row.payload, Job("j", ""))
        except TryAgain as again:
            return type(again).__name__
        return ""

    async def statuses(self) -> list[str]:
        return [delivery.status for delivery in await self.deliveries()]
