"""NotifyService of the contract: the ledger's notifications, and how far users have read them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aemos.v1 import device_pb2_grpc, notification_pb2_grpc
from aemos.v1 import notification_pb2 as pb
from aemos.v1.device_pb2 import GetDeviceRequest
from aemos_core.announce import Announcer
from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind, invalid, not_found, unavailable
from aemos_core.identity import Caller, caller
from aemos_core.names import device_id_room, device_room
from aemos_core.notification_log import BEGINNING, LogId, NotificationFeed, parse_log_id
from aemos_core.paging import page_of
from aemos_core.rpc import Context
from aemos_core.times import now_ms
from redis.exceptions import RedisError

from aemos_notify import codec, store
from aemos_notify.publish import announcement_of
from aemos_notify.watch import Watchers

_CLOCKS_DIFFER_MS = 60_000
_MOST_UNREAD = 1_000


class NotifyServicer(notification_pb2_grpc.NotifyServiceServicer):
    """Notifications, inside the caller's organization."""

    def __init__(
        self,
        database: Database,
        announcer: Announcer,
        devices: device_pb2_grpc.DeviceServiceAsyncStub,
        watchers: Watchers,
        feed: NotificationFeed,
    ) -> None:
        self._database = database
        self._announcer = announcer
        self._devices = devices
        self._watchers = watchers
        self._feed = feed

    async def ListNotifications(
        self, request: pb.ListNotificationsRequest, context: Context
    ) -> pb.ListNotificationsResponse:
        """A page, oldest first; the ledger follows the log within about a second."""
        after, page = codec.after_from_pb(request), page_of(pb.ListNotificationsRequest(page_size=request.page_size))
        async with self._database.read() as connection:
            whose, device = caller().organization_id, request.device_uuid
            found = await store.entries(connection, whose, after, page.limit + 1, device_uuid=device)
        entries, token = page.cut(found)
        return pb.ListNotificationsResponse(notifications=map(codec.entry_to_pb, entries), next_page_token=token)

    async def PublishNotification(
        self, request: pb.PublishNotificationRequest, context: Context
    ) -> pb.PublishNotificationResponse:
        announcement = announcement_of(request, caller().organization_id)
        if request.device_uuid:
            device = await self._devices.GetDevice(GetDeviceRequest(device=request.device_uuid))
            if device.uuid != request.device_uuid:  # it is found by its id too
                raise not_found("device")
            announcement.rooms.extend((device_room(device.uuid), device_id_room(device.id)))
        try:
            await self._announcer.announce([announcement])
        except (RedisError, OSError) as error:
            raise unavailable("the notification log did not answer") from error
        return pb.PublishNotificationResponse()

    async def GetReadCursor(self, request: pb.GetReadCursorRequest, context: Context) -> pb.ReadCursor:
        who = caller()
        async with self._database.read() as connection:
            place = await store.read_until(connection, who.organization_id, who.user_id)
            unread = await store.unread(connection, who.organization_id, place, _MOST_UNREAD)
        return pb.ReadCursor(id=str(place) if place != BEGINNING else "", unread=unread)

    async def MoveReadCursor(self, request: pb.MoveReadCursorRequest, context: Context) -> pb.ReadCursor:
        """Forward; never back, and so not into the future."""
        who, to = caller(), parse_log_id(request.id, "id")
        if to.ms > now_ms() + _CLOCKS_DIFFER_MS:
            raise invalid("id", "is of the future")
        try:
            await self._move_read_cursor(who, to)
        except AemosError as error:
            if error.kind is not Kind.EXISTS:  # the user's first move came from two places at once
                raise
            await self._move_read_cursor(who, to)
        return await self.GetReadCursor(pb.GetReadCursorRequest(), context)

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.Notification]:
        organization = caller().organization_id
        after = parse_log_id(request.after, "after") if request.after else await self._feed.position(organization)
        await context.send_initial_metadata(())  # so that a client knows from when on it misses nothing
        async for notification in self._watchers.watch(organization, after, request.device_uuid):
            yield notification

    async def _move_read_cursor(self, who: Caller, to: LogId) -> None:
        async with self._database.write() as connection:
            await store.move_read_cursor(connection, who.organization_id, who.user_id, to)
