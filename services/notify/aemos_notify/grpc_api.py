"""NotifyService of the contract: decode, call, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aemos.v1 import notification_pb2 as pb
from aemos.v1 import notification_pb2_grpc
from aemos_core.identity import caller
from aemos_core.notification_log import NotificationFeed, parse_log_id
from aemos_core.paging import page_of
from aemos_core.rpc import Context
from google.protobuf import json_format

from aemos_notify import codec
from aemos_notify.publish import Publisher
from aemos_notify.service import Ledger
from aemos_notify.subscription_codec import cursor_to_pb
from aemos_notify.subscription_service import ReadCursors
from aemos_notify.watch import Watchers


class NotifyServicer(notification_pb2_grpc.NotifyServiceServicer):
    """Notifications, inside the caller's organization."""

    def __init__(
        self, ledger: Ledger, cursors: ReadCursors, publisher: Publisher, watchers: Watchers, feed: NotificationFeed
    ) -> None:
        self._ledger = ledger
        self._feed = feed
        self._cursors = cursors
        self._publisher = publisher
        self._watchers = watchers

    async def ListNotifications(
        self, request: pb.ListNotificationsRequest, context: Context
    ) -> pb.ListNotificationsResponse:
        """A page, oldest first; the ledger follows the log within about a second."""
        query, page = codec.query_from_pb(request), page_of(pb.ListNotificationsRequest(page_size=request.page_size))
        return codec.page_to_pb(*await self._ledger.list(caller().organization_id, query, page))

    async def PublishNotification(
        self, request: pb.PublishNotificationRequest, context: Context
    ) -> pb.PublishNotificationResponse:
        metadata = json_format.MessageToDict(request.metadata)
        await self._publisher.publish(request.uuid, request.device_uuid, request.type, metadata)
        return pb.PublishNotificationResponse()

    async def GetReadCursor(self, request: pb.GetReadCursorRequest, context: Context) -> pb.ReadCursor:
        return cursor_to_pb(*await self._cursors.get())

    async def MoveReadCursor(self, request: pb.MoveReadCursorRequest, context: Context) -> pb.ReadCursor:
        return cursor_to_pb(*await self._cursors.move(parse_log_id(request.id, "id")))

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.Notification]:
        organization = caller().organization_id
        after = parse_log_id(request.after, "after") if request.after else await self._feed.position(organization)
        await context.send_initial_metadata(())  # so that a client knows from when on it misses nothing
        async for entry in self._watchers.watch(organization, after, request.device_uuid):
            yield codec.entry_to_pb(entry)
