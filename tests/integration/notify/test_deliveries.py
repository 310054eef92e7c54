"""Who is told of what, on both databases: each notification once for each subscription, tried again, repeated."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from pathlib import Path

import aemos_notify
import pytest
from aemos.v1 import history_pb2, history_pb2_grpc
from aemos.v1.device_pb2 import Device
from aemos.v1.subscription_pb2 import NotificationFilter as Filter
from aemos_core import rpc
from aemos_core.errors import AemosError
from aemos_core.identity import TokenVerifier, Trust
from aemos_core.jobs import MINUTE_MS, SEND_DELIVERY
from aemos_core.times import now_ms
from aemos_ingest.settings import IngestSettings
from aemos_notify.channels import Failed
from aemos_notify.dispatch import labels_from
from aemos_notify.service import forget_old
from aemos_notify.subscriptions import MOST_REPEATS, Status

from tests.support.notify_worker import NotifyWorker
from tests.support.ports import free_port


async def test_each_matching_subscription_is_told_once(notify: NotifyWorker) -> None:
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


async def test_what_fails_is_tried_again_and_then_dead(notify: NotifyWorker) -> None:
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


async def test_what_never_will_be_taken_is_dead_at_once(notify: NotifyWorker) -> None:
    """Such as 410 Gone."""
    await notify.subscribe()
    await notify.happens()
    notify.channel.failure = Failed("410 gone", for_good=True)
    assert await notify.work() == []
    assert await notify.statuses() == [Status.DEAD]


async def test_an_hour_has_its_limit(notify: NotifyWorker) -> None:
    """What is over it is not sent; one delivery stands for all of that, however much it is, and tells how much."""
    await notify.subscribe(hourly_limit=2)
    for seq in range(4):
        await notify.happens(seq)
    await notify.happen(10)
    await notify.work()
    assert sorted(await notify.statuses()) == [Status.SENT] * 2 + [Status.SUPPRESSED]
    (row,) = await notify.deliveries(status="suppressed")
    assert row.answer == "over the hourly limit, with 11 more of this hour"


async def test_what_was_suppressed_is_sent_by_hand(notify: NotifyWorker) -> None:
    """As any other: that it stood for others is no repetition of its own."""
    await notify.subscribe(hourly_limit=1, repeat_minutes=5)
    await notify.happen(30)
    await notify.work()
    (row,) = await notify.deliveries(status="suppressed")
    await notify.call("ResendDelivery", id=row.id)
    await notify.work()
    assert notify.channel.letters[-1].uid == f"msg_{row.subscription_id}_{row.notification_id}"
    assert await notify.sweep(now_ms() + 6 * MINUTE_MS) == 2


async def test_it_is_repeated_until_somebody_acknowledges(notify: NotifyWorker) -> None:
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


async def test_a_lost_job_is_sent_again(notify: NotifyWorker) -> None:
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


async def test_a_new_channel_is_one_class(notify: NotifyWorker) -> None:
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


async def test_what_goes_wrong_inside_is_a_failure_too(notify: NotifyWorker) -> None:
    """An attempt is counted whatever it ends with: nothing is tried for ever."""
    await notify.subscribe()
    await notify.happens()
    notify.channel.failure = RuntimeError("a bug")
    assert await notify.work() == ["TryAgain"]
    (row,) = await notify.deliveries(status="failed")
    assert (row.answer, row.attempts) == ("RuntimeError", 1)


async def test_an_acknowledgement_during_an_attempt_stays(notify: NotifyWorker) -> None:
    """What the attempt comes to does not undo it."""
    await notify.subscribe(repeat_minutes=5)
    await notify.happens()
    (row,) = await notify.deliveries()
    notify.channel.before = lambda: notify.call("AcknowledgeDelivery", id=row.id)
    await notify.work()
    assert await notify.statuses() == [Status.ACKNOWLEDGED]
    assert await notify.sweep(now_ms() + 60 * MINUTE_MS) == 0


async def test_a_slow_target_is_not_crowded(notify: NotifyWorker) -> None:
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


async def test_many_subscriptions_and_a_burst(notify: NotifyWorker) -> None:
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


async def test_what_is_old_is_forgotten(notify: NotifyWorker) -> None:
    """Notifications and their deliveries, some at a time."""
    await notify.subscribe(hourly_limit=3_600)
    await notify.happen(3_000)
    await forget_old(notify.database, now_ms() - MINUTE_MS)
    assert len(await notify.statuses()) == 1_000  # a page
    for left in (1, 0):
        await forget_old(notify.database, now_ms() + MINUTE_MS)
        assert bool(await notify.deliveries()) is bool(left)


class _History(history_pb2_grpc.HistoryServiceServicer):
    async def GetContext(
        self, request: history_pb2.GetContextRequest, context: rpc.Context
    ) -> history_pb2.GetContextResponse:
        known = {"labels": {"site": "hamburg"}, "attributes": {"notes": "x" * 10_000}}
        return history_pb2.GetContextResponse(devices=[Device(uuid=uuid, **known) for uuid in request.devices])


async def test_labels_of_many_devices() -> None:
    """As many as are copied at a time, however much there is to know of each."""
    settings = IngestSettings(ingest_grpc_port=free_port(), service_secret="s")
    verifier = TokenVerifier(lambda: asyncio.sleep(0, Trust()))
    async with (
        rpc.grpc_server(settings, "ingest", verifier, [_History()]),  # type: ignore[abstract]
        rpc.open_channel(f"127.0.0.1:{settings.ingest_grpc_port}", "s") as channel,
    ):
        labels_of, uuids = labels_from(history_pb2_grpc.HistoryServiceStub(channel)), list(map(str, range(500)))
        assert await labels_of(1, uuids) == {uuid: {"site": "hamburg"} for uuid in uuids}
