"""SubscriptionService of the contract: what users do with subscriptions and their deliveries."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from typing import Any

from aemos.v1 import subscription_pb2 as pb
from aemos.v1 import subscription_pb2_grpc
from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind, invalid, not_found
from aemos_core.identity import caller
from aemos_core.notification_log import parse_log_id
from aemos_core.outbox import OutboxRows
from aemos_core.paging import page_of
from aemos_core.records import AnyRow, listed, own
from aemos_core.rpc import Context
from aemos_core.times import now_ms
from google.protobuf.message import Message
from sqlalchemy import select

from aemos_notify import codec, store, templates
from aemos_notify import subscription_store as subscriptions
from aemos_notify.channels import ChannelSender
from aemos_notify.codec import delivery_of, subscription_of
from aemos_notify.dispatch import delivery_row
from aemos_notify.subscription_store import subscription
from aemos_notify.subscriptions import MOST_PER_ORGANIZATION, Status, check, filter_json

_HOURLY = 60
_OLD_SECRET_MS = 24 * 60 * 60 * 1000


class SubscriptionServicer(subscription_pb2_grpc.SubscriptionServiceServicer):
    """Subscriptions of the caller's organization, and their deliveries."""

    def __init__(self, database: Database, outbox: OutboxRows, channels: Mapping[str, ChannelSender]) -> None:
        self._database = database
        self._outbox = outbox
        self._channels = channels

    async def CreateSubscription(self, request: pb.CreateSubscriptionRequest, context: Context) -> pb.Subscription:
        draft = pb.Subscription(**{"enabled": True, "hourly_limit": _HOURLY, **_given(request)})
        self._check(draft)
        await self._channels[draft.channel].check_target(draft.target)
        draft.secret = _new_secret() if self._channels[draft.channel].signs else ""
        organization_id = caller().organization_id
        async with self._database.write() as connection:
            if await subscriptions.count(connection, organization_id) >= MOST_PER_ORGANIZATION:
                raise AemosError(Kind.INVALID, f"at most {MOST_PER_ORGANIZATION} subscriptions", reason="too_many")
            made = await subscriptions.create(connection, organization_id, draft)
            return subscription_of(await own(connection, subscription, made), with_secret=True)

    async def GetSubscription(self, request: pb.GetSubscriptionRequest, context: Context) -> pb.Subscription:
        return subscription_of(await self._get(request.id))

    async def ListSubscriptions(
        self, request: pb.ListSubscriptionsRequest, context: Context
    ) -> pb.ListSubscriptionsResponse:
        query = select(subscription).where(subscription.c.organization_id == caller().organization_id)
        async with self._database.read() as connection:
            found, token = await listed(connection, query, subscription.c.id, page_of(request))
        return pb.ListSubscriptionsResponse(subscriptions=map(subscription_of, found), next_page_token=token)

    async def UpdateSubscription(self, request: pb.UpdateSubscriptionRequest, context: Context) -> pb.Subscription:
        changes = {name: value for name, value in _given(request).items() if name != "id"}
        draft = pb.Subscription(**{**_given(subscription_of(await self._get(request.id))), **changes})
        self._check(draft)
        if "target" in changes:  # a host that is gone must not keep it from being turned off
            await self._channels[draft.channel].check_target(draft.target)
        if request.HasField("filter"):
            changes["filter"] = filter_json(request.filter)
        async with self._database.write() as connection:
            return subscription_of(await subscriptions.change(connection, request.id, changes))

    async def DeleteSubscription(
        self, request: pb.DeleteSubscriptionRequest, context: Context
    ) -> pb.DeleteSubscriptionResponse:
        """Cut short by a deadline, it is off, and goes on when it is called again."""
        is_gone = False
        while not is_gone:
            async with self._database.write() as connection:
                is_gone = await subscriptions.remove(connection, request.id)
        return pb.DeleteSubscriptionResponse()

    async def RotateSubscriptionSecret(
        self, request: pb.RotateSubscriptionSecretRequest, context: Context
    ) -> pb.Subscription:
        """The old one signs too for a day."""
        async with self._database.write() as connection:
            found = await own(connection, subscription, request.id, lock=True)
            if not found.secret:
                raise invalid("id", "its channel signs nothing")
            until = now_ms() + _OLD_SECRET_MS
            changes = {"secret": _new_secret(), "old_secret": found.secret, "old_until_ms": until}
            return subscription_of(await subscriptions.change(connection, request.id, changes), with_secret=True)

    async def PreviewTemplate(self, request: pb.PreviewTemplateRequest, context: Context) -> pb.PreviewTemplateResponse:
        notification: Mapping[str, Any] = templates.EXAMPLE
        if request.notification_id:
            place = parse_log_id(request.notification_id, "notificationId")
            async with self._database.read() as connection:
                entry = await store.entry(connection, caller().organization_id, place)
            if entry is None:
                raise not_found("notification")
            notification = codec.notification_of(entry)
        made = self._channel(request.channel).message(request.subject_template, request.body_template, notification)
        answer = pb.PreviewTemplateResponse(subject=made.subject, body=made.body)
        answer.notification.update(dict(notification))
        return answer

    async def ListDeliveries(self, request: pb.ListDeliveriesRequest, context: Context) -> pb.ListDeliveriesResponse:
        wanted = (caller().organization_id, request.subscription_id, request.status, page_of(request))
        if request.status and request.status not in set(Status):
            raise invalid("status", f"must be one of {', '.join(Status)}")
        async with self._database.read() as connection:
            found, token = await subscriptions.list_deliveries(connection, *wanted)
        return pb.ListDeliveriesResponse(deliveries=map(delivery_of, found), next_page_token=token)

    async def ResendDelivery(self, request: pb.ResendDeliveryRequest, context: Context) -> pb.Delivery:
        async with self._database.write() as connection:
            again = await subscriptions.begin_again(connection, request.id)
            target = await own(connection, subscription, again.subscription_id)
            rows = await self._outbox.add(connection, [delivery_row(again.id, target.id, target.channel)])
        self._outbox.committed(rows)
        return delivery_of(again)

    async def AcknowledgeDelivery(self, request: pb.AcknowledgeDeliveryRequest, context: Context) -> pb.Delivery:
        async with self._database.write() as connection:
            return delivery_of(
                await subscriptions.change_delivery(connection, request.id, status=Status.ACKNOWLEDGED, due_at_ms=None)
            )

    async def _get(self, subscription_id: int) -> AnyRow:
        async with self._database.read() as connection:
            return await own(connection, subscription, subscription_id)

    def _check(self, draft: pb.Subscription) -> None:
        check(draft)
        channel, made_by = self._channel(draft.channel), (draft.subject_template, draft.body_template)
        templates.check(*made_by)
        for example in templates.examples(draft.filter.event_types):
            channel.message(*made_by, example)

    def _channel(self, name: str) -> ChannelSender:
        if name not in self._channels:
            raise invalid("channel", f"must be one of {', '.join(self._channels)}")
        return self._channels[name]


def _given(message: Message) -> dict[str, Any]:
    """The fields that are set."""
    return {field.name: value for field, value in message.ListFields()}


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
