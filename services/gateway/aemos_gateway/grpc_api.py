"""The servicer of gateway: decode, call, encode."""

from __future__ import annotations

from collections.abc import Callable

from aemos.v1 import gateway_pb2, gateway_pb2_grpc
from aemos_core.errors import AemosError, Kind
from aemos_core.paging import page_of
from aemos_core.rpc import Context

from aemos_gateway.downlink import Downlink

_MOST_PAYLOAD = 1024


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """The connections of this process."""

    def __init__(self, downlink: Downlink, disconnect: Callable[[str], int]) -> None:
        self._downlink = downlink
        self._disconnect = disconnect

    async def ListConnections(
        self, request: gateway_pb2.ListConnectionsRequest, context: Context
    ) -> gateway_pb2.ListConnectionsResponse:
        page = page_of(request)
        listeners = self._downlink.all()
        shown = listeners[page.after : page.after + page.limit]
        more = page.after + page.limit < len(listeners)
        return gateway_pb2.ListConnectionsResponse(
            connections=[
                gateway_pb2.Connection(device_uuid=one.device_uuid, protocol=one.protocol, peer=one.peer)
                for one in shown
            ],
            next_page_token=str(page.after + page.limit) if more else "",
        )

    async def Disconnect(
        self, request: gateway_pb2.DisconnectRequest, context: Context
    ) -> gateway_pb2.DisconnectResponse:
        return gateway_pb2.DisconnectResponse(closed=self._disconnect(request.device_uuid))

    async def SendToDevice(
        self, request: gateway_pb2.SendToDeviceRequest, context: Context
    ) -> gateway_pb2.SendToDeviceResponse:
        if len(request.payload) > _MOST_PAYLOAD:
            raise AemosError(Kind.TOO_LARGE, f"a payload has at most {_MOST_PAYLOAD} bytes")
        return gateway_pb2.SendToDeviceResponse(sent=self._downlink.send(request.device_uuid, request.payload))
