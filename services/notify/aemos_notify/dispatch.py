"""From the ledger to people: which subscriptions a notification matches, and the jobs that send it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aemos.v1 import history_pb2, history_pb2_grpc
from aemos.v1.job_pb2 import SendDelivery
from aemos_core.database import Database
from aemos_core.errors import AemosError
from aemos_core.jobs import SEND_DELIVERY, JobQueue
from aemos_core.notification_log import LogId
from aemos_core.outbox import Outbox, OutboxRows, Row
from aemos_core.outbox_lane import MOST_IN_BATCH
from aemos_core.outbox_senders import JobSender, Receipts, send_receipt
from aemos_core.redis_link import RedisClient, wait
from aemos_core.times import now_ms
from aemos_core.worker import current_job
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_notify import codec, store, templates
from aemos_notify import subscription_store as subscriptions
from aemos_notify.channels import ChannelSender, Failed, Letter
from aemos_notify.domain import Entry
from aemos_notify.subscriptions import Status, Subscription

log = logging.getLogger("aemos.notify")

_LANES = 20
"""Each has two jobs under way at the most, so a slow target holds up few others."""
_LOST_MS = 30 * 60 * 1000
"""A job that neither ended nor was tried again for so long is gone with the Redis that held it."""
_SWEEP_SECONDS = 15.0
_SWEEP_AT_ONCE = 200

Labels = Callable[[int, Sequence[str]], Awaitable[Mapping[str, Mapping[str, str]]]]
"""Labels of devices by uuid: (organization id, uuids)."""


class TryAgain(Exception):
    """The target did not take it: the queue's back-off decides when it is tried again."""


def delivery_row(delivery_id: int, subscription_id: int) -> Row:
    """The outbox row that sends a delivery. It fills its job: what is slow must not wait for what is slower."""
    payload = SendDelivery(delivery_id=delivery_id).SerializeToString()
    return Row(SEND_DELIVERY.name, subscription_id % _LANES, payload, MOST_IN_BATCH)


def delivery_outbox(database: Database, queue: JobQueue, jobs_redis: RedisClient) -> tuple[Outbox, Receipts]:
    """The outbox whose rows become jobs, and what settles them: both are components."""
    outbox = Outbox(database, subscriptions.outbox)
    receipts = Receipts(jobs_redis, outbox.relay_id)
    outbox.add_sender(SEND_DELIVERY.name, JobSender(queue, SEND_DELIVERY, jobs_redis, receipts))
    return outbox, receipts


def labels_from(history: history_pb2_grpc.HistoryServiceAsyncStub) -> Labels:
    """Asks ingest."""

    async def labels(organization_id: int, uuids: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
        request = history_pb2.GetContextRequest(organization_id=organization_id, devices=uuids)
        return {device.uuid: dict(device.labels) for device in (await history.GetContext(request)).devices}

    return labels


class Dispatcher:
    """Adds the deliveries of notifications in the transaction that records them."""

    def __init__(self, outbox: OutboxRows, labels: Labels) -> None:
        self._outbox = outbox
        self._labels = labels

    async def add(self, connection: AsyncConnection, organization_id: int, entries: Sequence[Entry]) -> list[Row]:
        """Queues a delivery for each subscription that an entry matches; give the rows to `sent_off` afterwards."""
        wanted = await subscriptions.enabled(connection, organization_id)
        if not wanted or not entries:
            return []
        labels: Mapping[str, Mapping[str, str]] = {}
        if any(subscription.filter.device_label for subscription in wanted):
            labels = await self._labels(organization_id, sorted({e.device_uuid for e in entries if e.device_uuid}))
        matches = [
            (subscription, entry)
            for entry in entries
            for subscription in wanted
            if subscription.filter.matches(_notification(entry), labels.get(entry.device_uuid, {}))
        ]
        if not matches:
            return []
        counts = await subscriptions.sent_lately(connection, {subscription.id for subscription, _ in matches})
        await subscriptions.queue(connection, [_queued(organization_id, *match, counts) for match in matches])
        queued = await subscriptions.ids_of(connection, organization_id, [entry.log_id for _, entry in matches])
        return await self._outbox.add(connection, [delivery_row(row.id, row.subscription_id) for row in queued])

    def sent_off(self, rows: Sequence[Row]) -> None:
        """The transaction is durable."""
        self._outbox.committed(rows)


def _notification(entry: Entry) -> Mapping[str, Any]:
    try:
        found = json.loads(entry.body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _queued(organization_id: int, subscription: Subscription, entry: Entry, counts: dict[int, int]) -> dict[str, Any]:
    counts[subscription.id] = number = counts.get(subscription.id, 0) + 1
    is_over = number > subscription.hourly_limit
    return {
        "organization_id": organization_id,
        "subscription_id": subscription.id,
        "ms": entry.log_id.ms,
        "seq": entry.log_id.seq,
        "status": Status.SUPPRESSED if is_over else Status.QUEUED,
        "due_at_ms": None if is_over else now_ms() + _LOST_MS,
    }


class DeliverJob:
    """Sends one delivery. One that was sent is not sent again; one that failed is tried with the queue's back-off."""

    def __init__(self, database: Database, channels: Mapping[str, ChannelSender], jobs_redis: RedisClient) -> None:
        self._database = database
        self._channels = channels
        self._jobs_redis = jobs_redis

    async def __call__(self, payload: bytes, job_id: str) -> None:
        delivery_id = SendDelivery.FromString(payload).delivery_id
        async with self._database.read() as connection:
            row = await subscriptions.find_delivery(connection, delivery_id)
        try:
            if row is not None and row.status in (Status.QUEUED, Status.FAILED):
                await self._deliver(row)
        finally:
            # Whatever became of it, from here on the queue and the table remember it: the outbox need not.
            await send_receipt(self._jobs_redis, current_job.get().receipts, job_id)

    async def _deliver(self, row: subscriptions.AnyRow) -> None:
        async with self._database.read() as connection:
            subscription = await subscriptions.get(connection, row.organization_id, row.subscription_id)
            entry = await store.entry(connection, row.organization_id, LogId(row.ms, row.seq))
        try:
            if entry is None or not subscription.enabled:
                raise Failed("the subscription is off" if entry else "the notification is gone", for_good=True)
            answer = await self._channels[subscription.channel].send(_letter(subscription, entry))
        except (Failed, AemosError) as failed:
            await self._failed(row, failed)
            return
        repeat = now_ms() + subscription.repeat_minutes * 60_000 if subscription.repeat_minutes else None
        await self._note(row, Status.SENT, answer, sent_at_ms=now_ms(), due_at_ms=repeat)

    async def _failed(self, row: subscriptions.AnyRow, failed: Failed | AemosError) -> None:
        is_last = row.attempts + 1 > SEND_DELIVERY.max_retries
        if is_last or isinstance(failed, AemosError) or failed.for_good:
            await self._note(row, Status.DEAD, str(failed), due_at_ms=None)
            return
        await self._note(row, Status.FAILED, str(failed), due_at_ms=now_ms() + _LOST_MS)
        raise TryAgain

    async def _note(self, row: subscriptions.AnyRow, status: Status, answer: str, **values: Any) -> None:
        async with self._database.write() as connection:
            await subscriptions.change_delivery(
                connection, row.id, status=status, attempts=row.attempts + 1, answer=answer[:500], **values
            )


def _letter(subscription: Subscription, entry: Entry) -> Letter:
    notification = codec.notification_of(entry)
    message = templates.render(
        subscription.channel, subscription.subject_template, subscription.body_template, notification
    )
    uid = f"msg_{subscription.id}_{entry.id}"
    return Letter(uid, subscription.target, message, subscription.secrets(now_ms()))


class DeliverySweep:
    """A component: sends again what is to be repeated until it is acknowledged, and what Redis lost."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox

    async def run(self, stop: asyncio.Event) -> None:
        """Sweeps every 15 s."""
        while not await wait(stop, _SWEEP_SECONDS):
            try:
                await self.sweep(now_ms())
            except AemosError as error:
                log.warning("deliveries to look at again wait: %s", error.detail)

    async def sweep(self, now: int) -> int:
        """Sends what is due at `now`; how many there were."""
        async with self._database.write() as connection:
            due = await subscriptions.take_due(connection, now, _LOST_MS, _SWEEP_AT_ONCE)
            rows = await self._outbox.add(connection, [delivery_row(row.id, row.subscription_id) for row in due])
        self._outbox.committed(rows)
        return len(due)
