"""SubscriptionService of the contract: decode, call, encode."""

from __future__ import annotations

from aemos.v1 import subscription_pb2 as pb
from aemos.v1 import subscription_pb2_grpc
from aemos_core.notification_log import parse_log_id
from aemos_core.paging import page_of
from aemos_core.rpc import Context

from aemos_notify import subscription_codec as codec
from aemos_notify.subscription_service import Subscriptions


class SubscriptionServicer(subscription_pb2_grpc.SubscriptionServiceServicer):
    """Subscriptions and their deliveries."""

    def __init__(self, subscriptions: Subscriptions) -> None:
        self._subscriptions = subscriptions

    async def CreateSubscription(self, request: pb.CreateSubscriptionRequest, context: Context) -> pb.Subscription:
        created = await self._subscriptions.create(codec.draft_from_pb(request))
        return codec.subscription_to_pb(created, with_secret=True)

    async def GetSubscription(self, request: pb.GetSubscriptionRequest, context: Context) -> pb.Subscription:
        return codec.subscription_to_pb(await self._subscriptions.get(request.id))

    async def ListSubscriptions(
        self, request: pb.ListSubscriptionsRequest, context: Context
    ) -> pb.ListSubscriptionsResponse:
        found, token = await self._subscriptions.page(page_of(request))
        return pb.ListSubscriptionsResponse(subscriptions=map(codec.subscription_to_pb, found), next_page_token=token)

    async def UpdateSubscription(self, request: pb.UpdateSubscriptionRequest, context: Context) -> pb.Subscription:
        changed = await self._subscriptions.update(request.id, codec.changes_from_pb(request))
        return codec.subscription_to_pb(changed)

    async def DeleteSubscription(
        self, request: pb.DeleteSubscriptionRequest, context: Context
    ) -> pb.DeleteSubscriptionResponse:
        await self._subscriptions.delete(request.id)
        return pb.DeleteSubscriptionResponse()

    async def RotateSubscriptionSecret(
        self, request: pb.RotateSubscriptionSecretRequest, context: Context
    ) -> pb.Subscription:
        return codec.subscription_to_pb(await self._subscriptions.rotate_secret(request.id), with_secret=True)

    async def PreviewTemplate(self, request: pb.PreviewTemplateRequest, context: Context) -> pb.PreviewTemplateResponse:
        place = parse_log_id(request.notification_id, "notificationId")
        made = await self._subscriptions.preview(
            request.channel, request.subject_template, request.body_template, place
        )
        return codec.preview_to_pb(*made)

    async def ListDeliveries(self, request: pb.ListDeliveriesRequest, context: Context) -> pb.ListDeliveriesResponse:
        rows, token = await self._subscriptions.deliveries(request.subscription_id, request.status, page_of(request))
        return pb.ListDeliveriesResponse(deliveries=map(codec.delivery_to_pb, rows), next_page_token=token)

    async def ResendDelivery(self, request: pb.ResendDeliveryRequest, context: Context) -> pb.Delivery:
        return codec.delivery_to_pb(await self._subscriptions.resend(request.id))

    async def AcknowledgeDelivery(self, request: pb.AcknowledgeDeliveryRequest, context: Context) -> pb.Delivery:
        return codec.delivery_to_pb(await self._subscriptions.acknowledge(request.id))
