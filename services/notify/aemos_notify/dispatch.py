"""From the ledger to people: which subscriptions a notification matches, and the jobs that send it."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from aemos.v1 import history_pb2, history_pb2_grpc
from aemos.v1.job_pb2 import SendDelivery
from aemos_core.database import Database
from aemos_core.errors import AemosError
from aemos_core.jobs import SEND_DELIVERY, Job, JobQueue
from aemos_core.notification_log import Logged, LogId
from aemos_core.outbox import Outbox, OutboxRows, Row
from aemos_core.outbox_lane import MOST_IN_BATCH
from aemos_core.outbox_senders import JobSender, Receipts, send_receipt
from aemos_core.records import AnyRow
from aemos_core.redis_link import RedisClient
from aemos_core.times import now_ms
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_notify import codec, store
from aemos_notify import subscription_store as subscriptions
from aemos_notify.channels import JOBS, ChannelSender, Failed, Letter
from aemos_notify.subscription_store import Lately, Wanted, secrets_of
from aemos_notify.subscriptions import OPEN, Status

log = logging.getLogger("aemos.notify")

_LANES = 20
"""Of each queue. Each has two jobs under way at the most, so a slow target holds up few others."""
_LOST_MS = 30 * 60 * 1000
"""A job that neither ended nor was tried again for so long is gone with the Redis that held it."""
_MOST_AT_ONE_TARGET = 3
_MOST_MATCHES = 10_000
"""Deliveries that one transaction may have to add."""
_SWEEP_AT_ONCE = 200
_DEVICES_AT_ONCE = 50
"""What ingest knows of a device comes with its labels, and all of it must fit in a message."""

Labels = Callable[[int, Sequence[str]], Awaitable[Mapping[str, Mapping[str, str]]]]
"""Labels of devices by uuid: (organization id, uuids)."""


class TryAgain(Exception):
    """The target did not take it: the queue's back-off decides when it is tried again."""


def delivery_row(delivery_id: int, subscription_id: int, channel: str) -> Row:
    """The outbox row that sends a delivery. It fills its job: what is slow must not wait for what is slower."""
    payload = SendDelivery(delivery_id=delivery_id).SerializeToString()
    return Row(JOBS.get(channel, SEND_DELIVERY).name, subscription_id % _LANES, payload, MOST_IN_BATCH)


def delivery_outbox(database: Database, queue: JobQueue, jobs_redis: RedisClient) -> tuple[Outbox, Receipts]:
    """The outbox whose rows become jobs, and what settles them: both are components."""
    outbox = Outbox(database, subscriptions.outbox)
    receipts = Receipts(jobs_redis, outbox.relay_id)
    for spec in JOBS.values():
        outbox.add_sender(spec.name, JobSender(queue, spec, jobs_redis, receipts))
    return outbox, receipts


def labels_from(history: history_pb2_grpc.HistoryServiceAsyncStub) -> Labels:
    """Asks ingest."""

    async def labels(organization_id: int, uuids: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
        known: dict[str, Mapping[str, str]] = {}
        for start in range(0, len(uuids), _DEVICES_AT_ONCE):
            some = uuids[start : start + _DEVICES_AT_ONCE]
            request = history_pb2.GetContextRequest(organization_id=organization_id, devices=some)
            known |= {device.uuid: dict(device.labels) for device in (await history.GetContext(request)).devices}
        return known

    return labels


class Dispatcher:
    """Records notifications, and in the same transaction queues their deliveries."""

    def __init__(self, database: Database, outbox: OutboxRows, labels: Labels) -> None:
        self._database = database
        self._outbox = outbox
        self._labels = labels

    async def record(self, organization_id: int, entries: Sequence[Logged]) -> None:
        """Adds entries of the log, in its order, and their deliveries; twice is once. UNAVAILABLE when a filter asks
        for labels and nobody knows them."""
        async with self._database.read() as connection:
            wanted = await subscriptions.enabled(connection, organization_id)
        notifications = {entry.id: codec.notification_of(entry) for entry in entries if wanted}
        labels = await self._labels_of(organization_id, wanted, notifications.values())
        # As many at a time as a transaction can take, should every subscription want every one.
        size = max(1, _MOST_MATCHES // max(1, len(wanted)))
        for start in range(0, len(entries), size):
            async with self._database.write() as connection:
                new = await store.append(connection, organization_id, entries[start : start + size])
                told = defaultdict(list)
                for entry in new if wanted else ():
                    found = notifications[entry.id]
                    known = labels.get(str(found.get("deviceUuid")), {})
                    for subscription in wanted:
                        if subscription.filter.matches(found, known):
                            told[subscription].append(entry.id)
                rows = await self._queue(connection, organization_id, told) if told else []
            self._outbox.committed(rows)

    async def _labels_of(
        self, organization_id: int, wanted: Sequence[Wanted], notifications: Iterable[Mapping[str, Any]]
    ) -> Mapping[str, Mapping[str, str]]:
        devices = {str(found["deviceUuid"]) for found in notifications if found.get("deviceUuid")}
        if devices and any(subscription.filter.device_label for subscription in wanted):
            return await self._labels(organization_id, sorted(devices))
        return {}

    async def _queue(
        self, connection: AsyncConnection, organization_id: int, told: Mapping[Wanted, Sequence[LogId]]
    ) -> list[Row]:
        lately = await subscriptions.lately(connection, (subscription.id for subscription in told))
        new, more = _limited(told, lately)
        await subscriptions.suppress_more(connection, more)
        if not new:
            return []
        queued = await subscriptions.queue(connection, organization_id, new)
        return await self._outbox.add(connection, [delivery_row(*row) for row in queued])


def _limited(
    told: Mapping[Wanted, Sequence[LogId]], lately: Mapping[int, Lately]
) -> tuple[list[dict[str, Any]], dict[int, int]]:
    """The deliveries to add: one for each match within a subscription's limit, and one for all that are over it within
    the hour; and of those that are there already how many more they stand for."""
    rows: list[dict[str, Any]] = []
    more: dict[int, int] = {}
    for subscription, places in told.items():
        known = lately.get(subscription.id, Lately(0, 0))
        allowed = max(0, subscription.hourly_limit - known.number)
        new = [(place, Status.QUEUED, 0) for place in places[:allowed]]
        if over := places[allowed:]:
            if known.suppressed_id:
                more[known.suppressed_id] = len(over)
            else:
                new.append((over[0], Status.SUPPRESSED, len(over) - 1))
        rows += (
            {"subscription_id": subscription.id, **place._asdict(), "status": status, "repeats": repeats}
            for place, status, repeats in new
        )
    return sorted(rows, key=itemgetter("ms", "seq")), more


class DeliverJob:
    """Sends one delivery. One that was sent is not sent again; one that failed is tried with the queue's back-off.

    Until an attempt is noted in the table the outbox remembers the delivery, and then the table does.
    """

    def __init__(self, database: Database, channels: Mapping[str, ChannelSender], jobs_redis: RedisClient) -> None:
        self._database = database
        self._channels = channels
        self._jobs_redis = jobs_redis
        self._under_way: set[tuple[int, int]] = set()

    async def __call__(self, payload: bytes, job: Job) -> None:
        delivery_id = SendDelivery.FromString(payload).delivery_id
        async with self._database.read() as connection:
            row = await subscriptions.find(connection, subscriptions.delivery, delivery_id)
        is_done = True
        if row is not None and row.status in OPEN:
            is_done = await self._in_turn(row)
        await send_receipt(self._jobs_redis, job)
        if not is_done:
            raise TryAgain

    async def _in_turn(self, row: AnyRow) -> bool:
        """Whether that is the end of it. At one target few attempts are under way in this process, so that a slow one
        leaves threads to the others; and of one delivery only one, though its job may have come twice."""
        turn = row.subscription_id, row.id
        at_target = sum(subscription_id == row.subscription_id for subscription_id, _ in self._under_way)
        if turn in self._under_way or at_target >= _MOST_AT_ONE_TARGET:
            await self._note(row, due_at_ms=now_ms() + _LOST_MS)
            return False
        self._under_way.add(turn)
        try:
            return await self._deliver(row)
        finally:
            self._under_way.discard(turn)

    async def _deliver(self, row: AnyRow) -> bool:
        async with self._database.read() as connection:
            subscription = await subscriptions.find(connection, subscriptions.subscription, row.subscription_id)
            entry = await store.entry(connection, row.organization_id, LogId(row.ms, row.seq))
        try:
            if entry is None or subscription is None or not subscription.enabled:
                raise Failed("the subscription is off" if entry else "the notification is gone", for_good=True)
            answer = await self._send(subscription, entry, row.repeats)
        except Failed as failed:
            return await self._failed(row, failed)
        repeat = now_ms() + subscription.repeat_minutes * 60_000 if subscription.repeat_minutes else None
        await self._note(row, **_attempt(row, Status.SENT, answer), sent_at_ms=now_ms(), due_at_ms=repeat)
        return True

    async def _send(self, subscription: AnyRow, entry: Logged, repeats: int) -> str:
        channel = self._channels[subscription.channel]
        templates = subscription.subject_template, subscription.body_template
        # A repetition is a message of its own: receivers drop what comes with an id that they know.
        uid = f"msg_{subscription.id}_{entry.id}" + (f"_{repeats}" if repeats else "")
        try:
            message = channel.message(*templates, codec.notification_of(entry))
            return await channel.send(Letter(uid, subscription.target, message, secrets_of(subscription, now_ms())))
        except AemosError as error:
            raise Failed(error.detail, for_good=True) from error
        except Failed:
            raise
        except Exception as error:
            log.exception("delivery of %s failed", uid)
            raise Failed(type(error).__name__) from error

    async def _failed(self, row: AnyRow, failed: Failed) -> bool:
        is_last = failed.for_good or row.attempts + 1 > SEND_DELIVERY.max_retries
        status, due = (Status.DEAD, None) if is_last else (Status.FAILED, now_ms() + _LOST_MS)
        await self._note(row, **_attempt(row, status, str(failed)), due_at_ms=due)
        return is_last

    async def _note(self, row: AnyRow, **values: Any) -> None:
        async with self._database.write() as connection:
            await subscriptions.note(connection, row.id, **values)


def _attempt(row: AnyRow, status: Status, answer: str) -> dict[str, Any]:
    return {"status": status, "attempts": row.attempts + 1, "answer": answer[:500]}


async def send_due(database: Database, outbox: Outbox, now: int) -> bool:
    """Sends what is due at `now`: what is to be repeated until it is acknowledged, and what Redis lost. Whether there
    may be more."""
    async with database.write() as connection:
        due = await subscriptions.take_due(connection, now, _LOST_MS, _SWEEP_AT_ONCE)
        again = [delivery_row(row.id, row.subscription_id, row.channel) for row in due]
        rows = await outbox.add(connection, again)
    outbox.committed(rows)
    return len(due) == _SWEEP_AT_ONCE
