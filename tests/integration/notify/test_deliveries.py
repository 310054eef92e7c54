"""Who is told of what, on both databases: each notification once for each subscription, tried again, repeated."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aemos_notify
import pytest
from aemos.v1 import history_pb2, history_pb2_grpc, notification_pb2
from aemos.v1 import subscription_pb2 as pb
from aemos.v1.device_pb2 import Device
from aemos.v1.job_pb2 import SendDelivery
from aemos.v1.subscription_pb2 import NotificationFilter as Filter
from aemos_core import rpc
from aemos_core.database import Database
from aemos_core.errors import AemosError, invalid
from aemos_core.identity import Caller, TokenVerifier, Trust, set_caller
from aemos_core.jobs import SEND_DELIVERY
from aemos_core.notification_log import Logged, LogId
from aemos_core.outbox import Row
from aemos_core.records import own
from aemos_core.times import now_ms
from aemos_core.worker import Job, current_job
from aemos_notify import subscription_store, templates
from aemos_notify.channels import ChannelSender, Failed, Letter
from aemos_notify.dispatch import DeliverJob, Dispatcher, TryAgain, labels_from, send_due
from aemos_notify.notification_api import NotifyServicer
from aemos_notify.service import forget_old
from aemos_notify.subscription_api import SubscriptionServicer
from aemos_notify.subscription_store import secrets_of
from aemos_notify.subscriptions import MOST_REPEATS, Status
from aemos_notify.templates import EXAMPLE, Message
from sqlalchemy import select

from tests.support.notify_worker import FakeChannel, KeptOutbox, labels
from tests.support.ports import free_port

MINUTE_MS = 60_000


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


class Fixture:
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
        current_job.set(Job("j", "", "", ""))

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
            await self._job(row.payload, "j")
        except TryAgain as again:
            return type(again).__name__
        return ""

    async def statuses(self) -> list[str]:
        return [delivery.status for delivery in await self.deliveries()]


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
    (dead,) = await notify.deliveries(status="dead")
    assert (dead.answer, dead.attempts) == ("451 later", SEND_DELIVERY.max_retries + 1)
    notify.channel.failure = None
    await notify.call("ResendDelivery", id=dead.id)
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
    """What is over it is not sent; one delivery stands for all of that, however much it is, and tells how much."""
    await notify.subscribe(hourly_limit=2)
    for seq in range(4):
        await notify.happens(seq)
    await notify.happen(10)
    await notify.work()
    assert sorted(await notify.statuses()) == [Status.SENT] * 2 + [Status.SUPPRESSED]
    (row,) = await notify.deliveries(status="suppressed")
    assert row.answer == "over the hourly limit, with 11 more of this hour"


async def test_what_was_suppressed_is_sent_by_hand(notify: Fixture) -> None:
    """As any other: that it stood for others is no repetition of its own."""
    await notify.subscribe(hourly_limit=1, repeat_minutes=5)
    await notify.happen(30)
    await notify.work()
    (row,) = await notify.deliveries(status="suppressed")
    await notify.call("ResendDelivery", id=row.id)
    await notify.work()
    assert notify.channel.letters[-1].uid == f"msg_{row.subscription_id}_{row.notification_id}"
    assert await notify.sweep(now_ms() + 6 * MINUTE_MS) == 2


async def test_it_is_repeated_until_somebody_acknowledges(notify: Fixture) -> None:
    """After its minutes, again and again, but not for ever."""
    await notify.subscribe(repeat_minutes=5)
    await notify.happens()
    await notify.work()
    now = now_ms()
    assert await notify.sweep(now + 4 * MINUTE_MS) == 0
    assert await notify.sweep(now + 6 * MINUTE_MS) == 1
    await notify.work()
    first, second = (letter.uid for letter in notify.channel.letters)
    assert second == f"{first}_1"  # a message of its own, or its receiver would drop it
    (row,) = await notify.deliveries()
    assert (await notify.call("AcknowledgeDelivery", id=row.id)).status == Status.ACKNOWLEDGED
    assert await notify.sweep(now + 60 * MINUTE_MS) == 0
    assert MOST_REPEATS == 20


async def test_a_lost_job_is_sent_again(notify: Fixture) -> None:
    """What failed and was not tried again within half an hour is queued again; what is queued, the outbox knows."""
    await notify.subscribe()
    await notify.happens()
    assert await notify.sweep(now_ms() + 60 * MINUTE_MS) == 0
    notify.channel.failure = Failed("451 later")
    assert await notify.work() == ["TryAgain"]
    notify.channel.failure = None  # and Redis lost what is to be tried again
    assert await notify.sweep(now_ms() + 29 * MINUTE_MS) == 0
    assert await notify.sweep(now_ms() + 31 * MINUTE_MS) == 1
    await notify.work()
    assert await notify.statuses() == [Status.SENT]


async def test_a_new_channel_is_one_class(notify: Fixture) -> None:
    """It has its targets, its messages and no secret; no other module names any channel."""
    with pytest.raises(AemosError, match="token"):
        await notify.subscribe(channel="push", target="a@example.org")
    made = await notify.subscribe(channel="push", target="token-1", subject_template="{{ metadata.severity }}")
    await notify.happens()
    await notify.work()
    (row,) = await notify.deliveries(subscription_id=made.id)
    assert (row.answer, made.secret) == ("pushed critical to token-1", "")
    for module in Path(aemos_notify.__file__).parent.glob("*.py"):
        names = re.findall(r"[\"'](?:email|webhook)[\"']", module.read_text(encoding="utf-8"))
        assert not names or module.name == "channels.py", module.name


async def test_what_goes_wrong_inside_is_a_failure_too(notify: Fixture) -> None:
    """An attempt is counted whatever it ends with: nothing is tried for ever."""
    await notify.subscribe()
    await notify.happens()
    notify.channel.failure = RuntimeError("a bug")
    assert await notify.work() == ["TryAgain"]
    (row,) = await notify.deliveries(status="failed")
    assert (row.answer, row.attempts) == ("RuntimeError", 1)


async def test_an_acknowledgement_during_an_attempt_stays(notify: Fixture) -> None:
    """What the attempt comes to does not undo it."""
    await notify.subscribe(repeat_minutes=5)
    await notify.happens()
    (row,) = await notify.deliveries()
    notify.channel.before = lambda: notify.call("AcknowledgeDelivery", id=row.id)
    await notify.work()
    assert await notify.statuses() == [Status.ACKNOWLEDGED]
    assert await notify.sweep(now_ms() + 60 * MINUTE_MS) == 0


async def test_a_slow_target_is_not_crowded(notify: Fixture) -> None:
    """Three at a time try it, and each delivery once; the others come back later, and nothing is held up."""
    await notify.subscribe()
    await notify.happen(5)
    rows, free = notify.outbox.rows, asyncio.Event()
    notify.channel.before = free.wait
    under_way = [asyncio.create_task(notify.do(row)) for row in (*rows, *rows)]
    put_off = 0
    for ended in asyncio.as_completed(under_way):
        put_off += await ended == "TryAgain"
        if put_off == 7:
            free.set()
    assert (put_off, len(notify.channel.letters)) == (7, 3)
    notify.outbox.rows = rows
    assert await notify.work() == []
    assert len({letter.uid for letter in notify.channel.letters}) == len(notify.channel.letters) == 5


async def test_many_subscriptions_and_a_burst(notify: Fixture) -> None:
    """A burst on many subscriptions goes in portions, each a transaction that ends in time."""
    for number in range(200):
        await notify.subscribe(name=str(number), hourly_limit=3)
    began = time.monotonic()
    await notify.happen(500)
    assert time.monotonic() - began < 20
    listed = await notify.deliveries()
    assert Counter(row.status for row in listed) == {Status.QUEUED: 600, Status.SUPPRESSED: 200}
    over = "over the hourly limit, with 496 more of this hour"
    assert {row.answer for row in listed if row.status == Status.SUPPRESSED} == {over}


async def test_what_is_old_is_forgotten(notify: Fixture) -> None:
    """Notifications and their deliveries, some at a time."""
    await notify.subscribe(hourly_limit=3_600)
    await notify.happen(3_000)
    await forget_old(notify.database, now_ms() - MINUTE_MS)
    assert len(await notify.statuses()) == 1_000  # a page
    for left in (1, 0):
        await forget_old(notify.database, now_ms() + MINUTE_MS)
        assert bool(await notify.deliveries()) is bool(left)


async def test_a_subscription_goes_with_its_deliveries(notify: Fixture) -> None:
    """However many they are."""
    made = await notify.subscribe(hourly_limit=3_600)
    await notify.happen(2_500)
    await notify.call("DeleteSubscription", id=made.id)
    assert await notify.statuses() == []
    await notify.work()
    assert notify.channel.letters == []
    async with notify.database.read() as connection:
        actions = (await connection.execute(select(subscription_store.audit_rows.c.action))).scalars().all()
    assert actions == ["subscription.create", "subscription.delete"]


async def test_a_target_that_is_gone_may_be_turned_off(notify: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target is looked at when it is given, and not when something else of its subscription changes."""

    async def gone(target: str) -> None:
        raise invalid("target", "the host cannot be found")

    made = await notify.subscribe()
    monkeypatch.setattr(notify.channel, "check_target", gone)
    assert not (await notify.call("UpdateSubscription", id=made.id, enabled=False)).enabled
    with pytest.raises(AemosError, match="target"):
        await notify.call("UpdateSubscription", id=made.id, target="b@example.org")


async def test_two_changes_at_once_both_stay(notify: Fixture) -> None:
    """A change sets what it gives, and nothing else: not a secret that was made meanwhile."""
    made = await notify.subscribe(channel="webhook", target="https://example.org/hook")
    rotated = await notify.call("RotateSubscriptionSecret", id=made.id)
    changed = await notify.call("UpdateSubscription", id=made.id, name="t", filter=Filter(severities=("major",)))
    assert (changed.name, changed.filter.severities, changed.hourly_limit) == ("t", ["major"], 60)
    assert (await notify.secrets(made, now_ms()))[0] == rotated.secret
    with pytest.raises(AemosError):
        await notify.call("UpdateSubscription", id=made.id, hourly_limit=0)


class _History(history_pb2_grpc.HistoryServiceServicer):
    async def GetContext(
        self, request: history_pb2.GetContextRequest, context: rpc.Context
    ) -> history_pb2.GetContextResponse:
        known = {"labels": {"site": "hamburg"}, "attributes": {"notes": "x" * 10_000}}
        return history_pb2.GetContextResponse(devices=[Device(uuid=uuid, **known) for uuid in request.devices])


async def test_labels_of_many_devices() -> None:
    """As many as are copied at a time, however much there is to know of each."""
    target, verifier = f"127.0.0.1:{free_port()}", TokenVerifier(lambda: asyncio.sleep(0, Trust()))
    async with (
        rpc.grpc_server(target, "", "secret", verifier, [_History()]),  # type: ignore[abstract]
        rpc.open_channel(target, "secret") as channel,
    ):
        labels_of, uuids = labels_from(history_pb2_grpc.HistoryServiceStub(channel)), list(map(str, range(500)))
        assert await labels_of(1, uuids) == {uuid: {"site": "hamburg"} for uuid in uuids}


async def test_two_new_secrets_at_once_both_sign(notify: Fixture) -> None:
    """Each was shown to somebody."""
    made = await notify.subscribe(channel="webhook", target="https://example.org/hook")
    shown = await asyncio.gather(*(notify.call("RotateSubscriptionSecret", id=made.id) for _ in range(2)))
    assert set(await notify.secrets(made, now_ms())) == {one.secret for one in shown}


async def test_secrets(notify: Fixture) -> None:
    """A webhook has one; a new one signs beside the old one, for a day."""
    made = await notify.subscribe(channel="webhook", target="https://example.org/hook")
    assert made.secret.startswith("whsec_")
    rotated = await notify.call("RotateSubscriptionSecret", id=made.id)
    assert await notify.secrets(made, now_ms()) == [rotated.secret, made.secret]
    assert await notify.secrets(made, now_ms() + 25 * 60 * MINUTE_MS) == [rotated.secret]


@pytest.mark.parametrize(
    ("changes", "loc"),
    [
        ({"name": ""}, "name"),
        ({"channel": "pigeon"}, "channel"),
        ({"target": ""}, "target"),
        ({"filter": Filter(device_uuids=("x" * 64,) * 1_000)}, "filter"),
        ({"body_template": "{{ type", "filter": Filter(event_types=("own",))}, "bodyTemplate"),
        ({"hourly_limit": 3_601}, "hourlyLimit"),
        ({"body_template": "{{ missing }}"}, "bodyTemplate"),
        ({"filter": Filter(device_label="site")}, "filter.deviceLabel"),
        ({"filter": Filter(device_label="=site")}, "filter.deviceLabel"),
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
        await notify.call("GetSubscription", id=made.id)
    assert await notify.statuses() == []


async def test_read_cursors_move_forward_only(notify: Fixture) -> None:
    """Each user has an own one."""

    async def cursor(move_to: LogId | None = None) -> tuple[str, int]:
        if move_to is None:
            found = await notify.api.GetReadCursor(notification_pb2.GetReadCursorRequest(), None)  # type: ignore[arg-type]
        else:
            request = notification_pb2.MoveReadCursorRequest(id=str(move_to))
            found = await notify.api.MoveReadCursor(request, None)  # type: ignore[arg-type]
        return found.id, found.unread

    now = now_ms()
    for seq in range(3):
        await notify.happens(seq, now)
    assert await cursor() == ("", 3)
    assert await cursor(LogId(now, 1)) == (f"{now}-1", 1)
    assert await cursor(LogId(now, 0)) == (f"{now}-1", 1)
    with pytest.raises(AemosError, match="future"):
        await cursor(LogId(now + 60 * MINUTE_MS, 0))
    set_caller(Caller(1, 8, "viewer", "token"))
    assert await cursor() == ("", 3)
