"""Assembles the notify service and its worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
from aemos.v1 import device_pb2_grpc, rule_chain_pb2_grpc, sensor_pb2_grpc
from aemos_core import rpc
from aemos_core.broker import open_broker
from aemos_core.database import migrate, open_database
from aemos_core.jobs import RECORD_NOTIFICATIONS, JobQueue
from aemos_core.notification_log import NotificationFeed
from aemos_core.process import Component
from aemos_core.redis_link import open_redis
from aemos_core.worker import JobWorker, actor_on_loop
from google.protobuf.message import DecodeError

from aemos_notify.deliveries import Deliveries
from aemos_notify.grpc_api import NotifyServicer
from aemos_notify.jobs import LedgerFeed, RecordJob
from aemos_notify.listener import Listener, SocketIoApp, bound_socket
from aemos_notify.live_readings import CommittedReadings, LiveReadings
from aemos_notify.replay import Replayer
from aemos_notify.rooms import Rooms
from aemos_notify.service import History, Ledger, LogCopier
from aemos_notify.settings import NotifySettings
from aemos_notify.socketio_edge import SocketIoEdge
from aemos_notify.subjects import Subjects

MIGRATIONS = Path(__file__).parent.parent / "migrations"


async def migrate_database(settings: NotifySettings) -> None:
    """Brings the ledger's database to its newest form."""
    await migrate(settings.database_of("notify"), MIGRATIONS)


@asynccontextmanager
async def wire(settings: NotifySettings) -> AsyncIterator[Sequence[Component]]:
    """Opens what the notify service needs, in order; closes it in reverse."""
    async with AsyncExitStack() as stack:
        bound = stack.enter_context(bound_socket(settings.bind, settings.socketio_port, "AEMOS_SOCKETIO_PORT"))
        database = await stack.enter_async_context(open_database(settings.database_of("notify")))
        redis = await stack.enter_async_context(open_redis(settings.redis_url))
        broker = open_broker(settings.jobs_url)
        stack.callback(broker.close)
        queue = JobQueue(broker)
        stack.callback(queue.close)
        ingest = await stack.enter_async_context(rpc.open_channel(settings.ingest_target, settings.service_secret))
        rules = await stack.enter_async_context(rpc.open_channel(settings.rules_target, settings.service_secret))
        verifier = rpc.remote_verifier(ingest)
        ledger, ledger_feed, rooms = Ledger(database), LedgerFeed(redis, queue), Rooms()
        feed = NotificationFeed(redis, Deliveries(rooms, ledger_feed.noticed).deliver, ledger_feed.missed_some)
        readings = LiveReadings()
        committed = CommittedReadings(redis, readings)
        replayer = Replayer(feed, History(ledger, redis), rooms)
        edge = SocketIoEdge(verifier, _subjects(ingest, rules), rooms, feed, replayer, readings, committed.flowing)
        stack.push_async_callback(edge.server.shutdown)
        server = await stack.enter_async_context(
            rpc.grpc_server(
                f"{settings.bind}:{settings.notify_grpc_port}",
                "AEMOS_NOTIFY_GRPC_PORT",
                settings.service_secret,
                verifier,
                [NotifyServicer(ledger)],
            )
        )
        yield [
            server,
            Listener(SocketIoApp(edge.server, settings.socketio_clients), bound),
            feed,
            committed,
            ledger_feed,
        ]


def _subjects(ingest: grpc.aio.Channel, rules: grpc.aio.Channel) -> Subjects:
    return Subjects(
        device_pb2_grpc.DeviceServiceStub(ingest).GetDevice,
        sensor_pb2_grpc.SensorServiceStub(ingest).GetSensor,
        rule_chain_pb2_grpc.RuleChainServiceStub(rules).GetRuleChain,
    )


@asynccontextmanager
async def wire_worker(settings: NotifySettings) -> AsyncIterator[Sequence[Component]]:
    """Opens what the notify worker needs."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings.database_of("notify")))
        redis = await stack.enter_async_context(open_redis(settings.redis_url))
        broker = open_broker(settings.jobs_url)
        stack.callback(broker.close)
        job = RecordJob(LogCopier(Ledger(database), redis))
        actor_on_loop(broker, RECORD_NOTIFICATIONS, job, never_retry=(DecodeError,))
        yield [JobWorker(broker, [RECORD_NOTIFICATIONS.queue_name()], threads=settings.notify_worker_threads)]
