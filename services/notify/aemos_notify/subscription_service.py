"""Use cases of subscriptions and deliveries: what users do with them."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind, invalid, not_found
from aemos_core.identity import caller
from aemos_core.notification_log import LogId
from aemos_core.outbox import OutboxRows
from aemos_core.paging import Page
from aemos_core.times import now_ms

from aemos_notify import codec, store, templates
from aemos_notify import subscription_store as subscriptions
from aemos_notify.channels import ChannelSender
from aemos_notify.dispatch import delivery_row
from aemos_notify.subscription_store import AnyRow
from aemos_notify.subscriptions import MOST_PER_ORGANIZATION, Status, Subscription, check

_OLD_SECRET_MS = 24 * 60 * 60 * 1000
_CLOCKS_DIFFER_MS = 60_000
_MOST_UNREAD = 1_000


class Subscriptions:
    """Subscriptions of the caller's organization."""

    def __init__(self, database: Database, outbox: OutboxRows, channels: Mapping[str, ChannelSender]) -> None:
        self._database = database
        self._outbox = outbox
        self._channels = channels

    async def create(self, draft: Subscription) -> Subscription:
        """Saves a new one; a webhook gets its secret."""
        await self._check(draft)
        draft = replace(draft, secret=_new_secret() if self._channels[draft.channel].signs else "")
        async with self._database.write() as connection:
            if await subscriptions.count(connection, draft.organization_id) >= MOST_PER_ORGANIZATION:
                raise AemosError(Kind.INVALID, f"at most {MOST_PER_ORGANIZATION} subscriptions", reason="too_many")
            return await subscriptions.create(connection, draft)

    async def update(self, subscription_id: int, changes: Mapping[str, Any]) -> Subscription:
        """Saves it with some fields changed."""
        found = await self.get(subscription_id)
        await self._check(replace(found, **changes))
        async with self._database.write() as connection:
            return await subscriptions.change(connection, found.organization_id, subscription_id, changes)

    async def rotate_secret(self, subscription_id: int) -> Subscription:
        """A new secret; the old one signs too for a day."""
        found = await self.get(subscription_id)
        if not found.secret:
            raise invalid("id", "its channel signs nothing")
        until = now_ms() + _OLD_SECRET_MS
        changes = {"secret": _new_secret(), "old_secret": found.secret, "old_until_ms": until}
        async with self._database.write() as connection:
            return await subscriptions.change(connection, found.organization_id, subscription_id, changes)

    async def get(self, subscription_id: int) -> Subscription:
        """A subscription."""
        async with self._database.read() as connection:
            return await subscriptions.get(connection, caller().organization_id, subscription_id)

    async def page(self, page: Page) -> tuple[Sequence[Subscription], str]:
        """A page and the token of the next."""
        async with self._database.read() as connection:
            found = await subscriptions.page(connection, caller().organization_id, page.after, page.limit)
        return page.cut(found)

    async def delete(self, subscription_id: int) -> None:
        """Removes one with its deliveries. Cut short by a deadline, it is off, and goes on when it is called again."""
        is_gone = False
        while not is_gone:
            async with self._database.write() as connection:
                await subscriptions.change(connection, caller().organization_id, subscription_id, {"enabled": False})
                is_gone = await subscriptions.remove(connection, subscription_id)

    async def preview(self, channel: str, subject: str, body: str, place: LogId) -> tuple[templates.Message, Any]:
        """What templates make of a notification of the ledger, or of a made-up one."""
        notification: Mapping[str, Any] = templates.EXAMPLE
        if place != LogId():
            async with self._database.read() as connection:
                entry = await store.entry(connection, caller().organization_id, place)
            if entry is None:
                raise not_found("notification")
            notification = codec.notification_of(entry)
        return self._channel(channel).message(subject, body, notification), notification

    async def deliveries(self, subscription_id: int, status: str, page: Page) -> tuple[Sequence[AnyRow], str]:
        """A page of deliveries, newest first, and the token of the next."""
        if status and status not in set(Status):
            raise invalid("status", f"must be one of {', '.join(Status)}")
        organization_id = caller().organization_id
        async with self._database.read() as connection:
            found = await subscriptions.list_deliveries(
                connection, organization_id, subscription_id, status, page.after, page.limit
            )
        return page.cut(found)

    async def resend(self, delivery_id: int) -> AnyRow:
        """Queues a delivery again, whatever became of it."""
        async with self._database.write() as connection:
            found = await subscriptions.get_delivery(connection, caller().organization_id, delivery_id)
            subscription = await subscriptions.get(connection, found.organization_id, found.subscription_id)
            await subscriptions.change_delivery(connection, delivery_id, status=Status.QUEUED, attempts=0, answer="")
            row = delivery_row(delivery_id, subscription.id, subscription.channel)
            rows = await self._outbox.add(connection, [row])
            after = await subscriptions.get_delivery(connection, caller().organization_id, delivery_id)
        self._outbox.committed(rows)
        return after

    async def acknowledge(self, delivery_id: int) -> AnyRow:
        """Somebody has seen to it: it is not repeated."""
        async with self._database.write() as connection:
            await subscriptions.get_delivery(connection, caller().organization_id, delivery_id)
            await subscriptions.change_delivery(connection, delivery_id, status=Status.ACKNOWLEDGED, due_at_ms=None)
            return await subscriptions.get_delivery(connection, caller().organization_id, delivery_id)

    async def _check(self, draft: Subscription) -> None:
        check(draft)
        channel, made_by = self._channel(draft.channel), (draft.subject_template, draft.body_template)
        templates.check(*made_by)
        for example in templates.examples(draft.filter.event_types):
            channel.message(*made_by, example)
        await channel.check_target(draft.target)

    def _channel(self, name: str) -> ChannelSender:
        if name not in self._channels:
            raise invalid("channel", f"must be one of {', '.join(self._channels)}")
        return self._channels[name]


class ReadCursors:
    """How far the caller has read what its organization was told."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self) -> tuple[LogId, int]:
        """The last one that was read, and how many came since, at most 1000."""
        who = caller()
        async with self._database.read() as connection:
            place = await subscriptions.read_until(connection, who.organization_id, who.user_id)
            return place, await subscriptions.unread(connection, who.organization_id, place, _MOST_UNREAD)

    async def move(self, to: LogId) -> tuple[LogId, int]:
        """Moves it forward; never back, and so not into the future."""
        if to.ms > now_ms() + _CLOCKS_DIFFER_MS:
            raise invalid("id", "is of the future")
        who = caller()
        async with self._database.write() as connection:
            await subscriptions.move_cursor(connection, who.organization_id, who.user_id, to)
        return await self.get()


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
