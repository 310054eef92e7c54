"""Who is told of what, on both databases: each notification once for each subscription, tried again, repeated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import aemos_notify
import pytest
from aemos.v1.job_pb2 import SendDelivery
from aemos_core.database import Database
from aemos_core.errors import AemosError
from aemos_core.identity import Caller, set_caller
from aemos_core.jobs import SEND_DELIVERY
from aemos_core.notification_log import LogId
from aemos_core.paging import Page
from aemos_core.times import now_ms
from aemos_core.worker import Job, current_job
from aemos_notify.channels import Failed
from aemos_notify.dispatch import DeliverJob, DeliverySweep, Dispatcher, TryAgain
from aemos_notify.domain import Entry
from aemos_notify.service import Ledger
from aemos_notify.subscription_service import ReadCursors, Subscriptions
from aemos_notify.subscriptions import MOST_REPEATS, Filter, Status, Subscription
from aemos_notify.templates import EXAMPLE

from tests.support.notify_worker import FakeChannel, KeptOutbox, labels

MINUTE_MS = 60_000


class Fixture:
    """Notify's worker on a database, with one channel that is a list."""

    def __init__(self, database: Database) -> None:
        set_caller(Caller(1, 7, "admin", "token"))
        self.outbox, self.channel = KeptOutbox(database), FakeChannel()
        channels = {"email": self.channel, "webhook": self.channel}
        self.subscriptions = Subscriptions(database, self.outbox, channels)
        self.cursors = ReadCursors(database)
        self.sweep = DeliverySweep(database, self.outbox)
        self._ledger, self._dispatcher = Ledger(database), Dispatcher(self.outbox, labels)
        self._job = DeliverJob(database, channels, None)  # type: ignore[arg-type]  # without receipts no Redis
        current_job.set(Job("j", "", "", ""))

    async def subscribe(self, **changes: Any) -> Subscription:
        values = {"name": "s", "channel": "email", "target": "a@example.org", "enabled": True, **changes}
        return await self.subscriptions.create(Subscription(id=0, organization_id=1, **values))

    async def happens(self, seq: int = 1, ms: int = 0, **changes: Any) -> None:
        body: Mapping[str, Any] = {k: v for k, v in {**EXAMPLE, **changes}.items() if k != "id"}
        entry = Entry(LogId(ms or now_ms(), seq), str(body["type"]), "abc-123", json.dumps(body))
        await self._ledger.append(1, [entry], self._dispatcher)

    async def work(self) -> list[str]:
        """Does every job that is queued; what each raised."""
        rows, self.outbox.rows = self.outbox.rows, []
        raised = []
        for row in rows:
            assert SendDelivery.FromString(row.payload).delivery_id
            try:
                await self._job(row.payload, "j")
            except TryAgain as again:
                raised.append(type(again).__name__)
        return raised

    async def statuses(self) -> list[str]:
        found, _ = await self.subscriptions.deliveries(0, "", Page(100, 0))
        return [row.status for row in found]


@pytest.fixture
async def notify(open_owned: Any) -> Fixture:
    return Fixture(await open_owned(aemos_notify))


async def test_each_matching_subscription_is_told_once(notify: Fixture) -> None:
    """Those that are on and whose filter matches; a job that comes again sends nothing again."""
    await notify.subscribe(filter=Filter(severities=("critical",)))
    await notify.subscribe(filter=Filter(device_label="site=hamburg"))
    await notify.subscribe(filter=Filter(device_label="site=berlin"))
    await notify.subscribe(enabled=False)
    await notify.happens()
    rows = list(notify.outbox.rows)
    assert await notify.work() == []
    notify.outbox.rows = rows
    assert await notify.work() == []
    assert [letter.message.subject[:10] for letter in notify.channel.letters] == ["[critical]"] * 2
    assert await notify.statuses() == [Status.SENT] * 2


async def test_what_fails_is_tried_again_and_then_dead(notify: Fixture) -> None:
    """With the answer kept; a dead one can be sent again by hand."""
    await notify.subscribe()
    await notify.happens()
    row, notify.channel.failure = notify.outbox.rows[0], Failed("451 later")
    for _ in range(SEND_DELIVERY.max_retries):
        notify.outbox.rows = [row]
        assert await notify.work() == ["TryAgain"]
    assert await notify.statuses() == [Status.FAILED]
    notify.outbox.rows = [row]
    assert await notify.work() == []
    (dead,), _ = await notify.subscriptions.deliveries(0, "dead", Page(100, 0))
    assert (dead.answer, dead.attempts) == ("451 later", SEND_DELIVERY.max_retries + 1)
    notify.channel.failure = None
    await notify.subscriptions.resend(dead.id)
    await notify.work()
    assert await notify.statuses() == [Status.SENT]


async def test_what_never_will_be_taken_is_dead_at_once(notify: Fixture) -> None:
    """Such as 410 Gone."""
    await notify.subscribe()
    await notify.happens()
    notify.channel.failure = Failed("410 gone", for_good=True)
    assert await notify.work() == []
    assert await notify.statuses() == [Status.DEAD]


async def test_an_hour_has_its_limit(notify: Fixture) -> None:
    """What is over it is listed as suppressed, and not sent."""
    await notify.subscribe(hourly_limit=2)
    for seq in range(4):
        await notify.happens(seq)
    await notify.work()
    assert sorted(await notify.statuses()) == [Status.SENT] * 2 + [Status.SUPPRESSED] * 2


async def test_it_is_repeated_until_somebody_acknowledges(notify: Fixture) -> None:
    """After its minutes, again and again, but not for ever."""
    await notify.subscribe(repeat_minutes=5)
    await notify.happens()
    await notify.work()
    now = now_ms()
    assert await notify.sweep.sweep(now + 4 * MINUTE_MS) == 0
    assert await notify.sweep.sweep(now + 6 * MINUTE_MS) == 1
    await notify.work()
    assert len(notify.channel.letters) == 2
    (row,), _ = await notify.subscriptions.deliveries(0, "", Page(100, 0))
    assert (await notify.subscriptions.acknowledge(row.id)).status == Status.ACKNOWLEDGED
    assert await notify.sweep.sweep(now + 60 * MINUTE_MS) == 0
    assert MOST_REPEATS == 20


async def test_a_lost_job_is_sent_again(notify: Fixture) -> None:
    """What was queued and never came back is queued again after half an hour."""
    await notify.subscribe()
    await notify.happens()
    notify.outbox.rows.clear()  # Redis lost it
    assert await notify.sweep.sweep(now_ms() + 29 * MINUTE_MS) == 0
    assert await notify.sweep.sweep(now_ms() + 31 * MINUTE_MS) == 1
    await notify.work()
    assert await notify.statuses() == [Status.SENT]


async def test_secrets(notify: Fixture) -> None:
    """A webhook has one; a new one signs beside the old one, for a day."""
    made = await notify.subscribe(channel="webhook", target="https://example.org/hook")
    assert made.secret.startswith("whsec_")
    rotated = await notify.subscriptions.rotate_secret(made.id)
    assert rotated.secrets(now_ms()) == [rotated.secret, made.secret]
    assert rotated.secrets(now_ms() + 25 * 60 * MINUTE_MS) == [rotated.secret]


@pytest.mark.parametrize(
    ("changes", "loc"),
    [
        ({"name": ""}, "name"),
        ({"channel": "pigeon"}, "channel"),
        ({"target": "not an address"}, "target"),
        ({"channel": "webhook", "target": "ftp://example.org"}, "target"),
        ({"hourly_limit": 0}, "hourlyLimit"),
        ({"body_template": "{{ missing }}"}, "bodyTemplate"),
        ({"filter": Filter(device_label="site")}, "filter.deviceLabel"),
    ],
)
async def test_mistakes_are_named(notify: Fixture, changes: dict[str, Any], loc: str) -> None:
    """Nothing is saved that could not work."""
    with pytest.raises(AemosError) as refused:
        await notify.subscribe(**changes)
    assert [error.loc for error in refused.value.errors] == [loc]


async def test_another_organization_sees_nothing(notify: Fixture) -> None:
    """Neither subscriptions nor deliveries."""
    made = await notify.subscribe()
    await notify.happens()
    set_caller(Caller(2, 8, "admin", "token"))
    with pytest.raises(AemosError):
        await notify.subscriptions.get(made.id)
    assert await notify.statuses() == []


async def test_read_cursors_move_forward_only(notify: Fixture) -> None:
    """Each user has an own one."""
    now = now_ms()
    for seq in range(3):
        await notify.happens(seq, now)
    assert await notify.cursors.get() == (LogId(), 3)
    assert await notify.cursors.move(LogId(now, 1)) == (LogId(now, 1), 1)
    assert await notify.cursors.move(LogId(now, 0)) == (LogId(now, 1), 1)
    set_caller(Caller(1, 8, "viewer", "token"))
    assert await notify.cursors.get() == (LogId(), 3)
