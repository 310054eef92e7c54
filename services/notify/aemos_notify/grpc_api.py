"""NotifyService of the contract."""

from __future__ import annotations

from aemos.v1 import notification_pb2 as pb
from aemos.v1 import notification_pb2_grpc
from aemos_core.identity import caller
from aemos_core.paging import page_of
from aemos_core.rpc import Context

from aemos_notify import codec
from aemos_notify.service import Ledger


class NotifyServicer(notification_pb2_grpc.NotifyServiceServicer):
    """Answers from the ledger, inside the caller's organization."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def ListNotifications(
        self, request: pb.ListNotificationsRequest, context: Context
    ) -> pb.ListNotificationsResponse:
        """A page, oldest first; the ledger follows the log within about a second."""
        query, page = codec.query_from_pb(request), page_of(pb.ListNotificationsRequest(page_size=request.page_size))
        return codec.page_to_pb(*await self._ledger.list(caller().organization_id, query, page))
