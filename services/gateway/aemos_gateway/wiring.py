"""Assembles the gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial

import grpc
from aemos.v1 import connectivity_pb2_grpc, data_stream_pb2_grpc, identity_pb2_grpc, rejection_pb2_grpc
from aemos_core.contract import methods
from aemos_core.http_server import HttpServer, bound_socket
from aemos_core.names import REGISTRY_CHANGED
from aemos_core.notification_log import NotificationFeed, entries
from aemos_core.process import Component
from aemos_core.redis_link import Subscriber, open_redis
from aemos_core.rpc import grpc_server, open_channel, remote_verifier

from aemos_gateway.coap_edge import CoapEdge
from aemos_gateway.device_auth import DeviceAuth
from aemos_gateway.downlink import Downlink
from aemos_gateway.grpc_api import GatewayServicer
from aemos_gateway.http_edge import IngestRoute, make_app
from aemos_gateway.mqtt_device import Ports
from aemos_gateway.mqtt_edge import MqttEdge
from aemos_gateway.mqtt_hearing import Backlog
from aemos_gateway.mqtt_sessions import TAKEN, Sessions
from aemos_gateway.presence import Presence
from aemos_gateway.quota import Quota
from aemos_gateway.rejections import Rejections
from aemos_gateway.service import Uplink
from aemos_gateway.settings import GatewaySettings

_OWNERS = {
    "rules": ("RuleChainService", "DeviceStateService", "AlarmService", "ReportService", "ChainRunService"),
    "scheduler": ("SchedulerService",),
    "notify": ("NotifyService", "SubscriptionService"),
}
"""Which service answers which part of the contract; what is not named is ingest's."""


def _channels(by_service: dict[str, grpc.aio.Channel]) -> dict[str, grpc.aio.Channel]:
    owner_of = {f"aemos.v1.{name}": owner for owner, names in _OWNERS.items() for name in names}
    return {m.service: by_service[owner_of.get(m.service, "ingest")] for m in methods().values()}


@asynccontextmanager
async def wire(settings: GatewaySettings) -> AsyncIterator[Sequence[Component]]:
    """Opens what the gateway needs, in order; closes it in reverse."""
    async with AsyncExitStack() as stack:
        enter, secret = stack.enter_async_context, settings.service_secret
        redis = await enter(open_redis(settings.redis_url))
        services = {
            "ingest": await enter(open_channel(settings.ingest_target, secret)),
            "rules": await enter(open_channel(settings.rules_target, secret)),
            "scheduler": await enter(open_channel(settings.scheduler_target, secret)),
            "notify": await enter(open_channel(settings.notify_target, secret)),
        }
        ingest = services["ingest"]
        verifier = remote_verifier(ingest)
        auth = DeviceAuth(identity_pb2_grpc.IdentityServiceStub(ingest))
        quota = Quota(settings.device_readings_per_second, settings.organization_readings_per_second)
        rejections = Rejections(rejection_pb2_grpc.RejectionServiceStub(ingest))
        presence = Presence(connectivity_pb2_grpc.ConnectivityServiceStub(ingest), settings.device_silent_seconds)
        uplink = Uplink(data_stream_pb2_grpc.DataStreamServiceStub(ingest), quota, rejections, presence)
        downlink = Downlink()
        feed = NotificationFeed(redis, downlink.deliver)

        app = IngestRoute(auth, uplink, make_app(_channels(services), verifier, ingest, redis))
        bound = stack.enter_context(bound_socket(settings.bind, settings.http_port, "AEMOS_HTTP_PORT"))
        http = HttpServer(app, bound, settings.drain_seconds, app.at_once, ws="none")
        ports = Ports(uplink, downlink, Sessions(redis), Backlog(feed, partial(entries, redis)))
        mqtt = MqttEdge(auth, ports)
        await mqtt.listen(settings.bind, settings.mqtt_port)
        await enter(aclosing(mqtt))
        coap = await enter(aclosing(CoapEdge(settings.bind, settings.coap_port, auth, uplink, downlink)))
        servicers = [GatewayServicer(downlink, mqtt.disconnect)]
        server = await enter(grpc_server(settings, "gateway", verifier, servicers))
        subscriber = Subscriber(
            redis,
            {TAKEN: mqtt.taken, REGISTRY_CHANGED: auth.look_again},
            auth.look_again,
        )
        yield [http, mqtt, coap, server, auth, uplink, presence, feed, subscriber]
