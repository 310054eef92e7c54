"""Assembles the notify service and its worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from aemos.v1 import device_pb2_grpc, history_pb2_grpc
from aemos_core import rpc
from aemos_core.announce import Announcer
from aemos_core.broker import WakeRedisBroker, open_broker
from aemos_core.database import open_database
from aemos_core.http_server import HttpServer, bound_socket
from aemos_core.jobs import DELIVER_EMAIL, RECORD_NOTIFICATIONS, SEND_DELIVERY, SEND_EMAIL, JobQueue
from aemos_core.notification_log import NotificationFeed
from aemos_core.process import Component
from aemos_core.redis_link import open_redis
from aemos_core.sweeping import Sweep
from aemos_core.times import now_ms
from aemos_core.worker import JobWorker, actor_on_loop, is_outage
from google.protobuf.message import DecodeError

from aemos_notify.channels import EmailChannel, Failed, open_channels
from aemos_notify.dispatch import DeliverJob, Dispatcher, delivery_outbox, labels_from, send_due
from aemos_notify.fan_out import FanOut
from aemos_notify.jobs import LedgerFeed, RecordJob
from aemos_notify.live_readings import CommittedReadings, LiveReadings
from aemos_notify.mail_job import MailJob
from aemos_notify.notification_api import NotifyServicer
from aemos_notify.replay import Replayer
from aemos_notify.rooms import Rooms
from aemos_notify.service import KEPT_MS, History, forget_old
from aemos_notify.settings import NotifySettings
from aemos_notify.socketio_app import UVICORN_OPTIONS, SocketIoApp
from aemos_notify.socketio_edge import SocketIoEdge
from aemos_notify.subjects import Subjects
from aemos_notify.subscription_api import SubscriptionServicer
from aemos_notify.watch import Watchers

_LEDGER_THREADS = 2
_GRACE_SECONDS = 5


def _broker(stack: AsyncExitStack, settings: NotifySettings) -> WakeRedisBroker:
    broker = open_broker(settings.jobs_url)
    stack.callback(broker.close)
    return broker


@asynccontextmanager
async def wire(settings: NotifySettings) -> AsyncIterator[Sequence[Component]]:
    """Opens what the notify service needs, in order; closes it in reverse."""
    async with AsyncExitStack() as stack:
        enter, secret = stack.enter_async_context, settings.service_secret
        bound = stack.enter_context(bound_socket(settings.bind, settings.socketio_port, "AEMOS_SOCKETIO_PORT"))
        database = await enter(open_database(settings.database_of("notify")))
        redis, jobs_redis = await enter(open_redis(settings.redis_url)), await enter(open_redis(settings.jobs_url))
        queue = JobQueue(_broker(stack, settings))
        stack.callback(queue.close)
        ingest = await enter(rpc.open_channel(settings.ingest_target, secret))
        rules = await enter(rpc.open_channel(settings.rules_target, secret))
        channels = await enter(open_channels(settings.mail_server, settings.webhook_networks))
        verifier, subjects = rpc.remote_verifier(ingest), Subjects(ingest, rules)
        ledger_feed, watchers, rooms = LedgerFeed(redis, queue), Watchers(database, redis), Rooms()
        fan_out = FanOut(rooms, (ledger_feed.noticed, watchers.noticed))
        feed = NotificationFeed(redis, fan_out.deliver, ledger_feed.missed_some)
        readings = LiveReadings()
        committed = CommittedReadings(redis, readings)
        replayer = Replayer(feed, History(database, redis), rooms)
        edge = SocketIoEdge(verifier, subjects, rooms, feed, replayer, readings, committed.flowing)
        stack.push_async_callback(edge.server.shutdown)
        outbox, receipts = delivery_outbox(database, queue, jobs_redis)
        devices = device_pb2_grpc.DeviceServiceStub(ingest)
        servicers = [
            NotifyServicer(database, Announcer(redis), devices, watchers, feed),
            SubscriptionServicer(database, outbox, channels),
        ]
        server = await enter(rpc.grpc_server(settings, "notify", verifier, servicers))
        app = SocketIoApp(edge.server, settings.socketio_clients)
        listener = HttpServer(app, bound, _GRACE_SECONDS, **UVICORN_OPTIONS)
        yield [server, watchers, listener, edge, feed, committed, ledger_feed, outbox, receipts]


@asynccontextmanager
async def wire_worker(settings: NotifySettings) -> AsyncIterator[Sequence[Component]]:
    """Opens what the notify worker needs; the ledger, mail and webhooks have own threads: none waits."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(open_database(settings.database_of("notify")))
        redis, jobs_redis = await enter(open_redis(settings.redis_url)), await enter(open_redis(settings.jobs_url))
        ingest = await enter(rpc.open_channel(settings.ingest_target, settings.service_secret))
        channels = await enter(open_channels(settings.mail_server, settings.webhook_networks))
        recording, posting, mailing = (_broker(stack, settings) for _ in range(3))
        queue = JobQueue(posting)
        stack.callback(queue.close)
        outbox, receipts = delivery_outbox(database, queue, jobs_redis)
        dispatcher = Dispatcher(database, outbox, labels_from(history_pb2_grpc.HistoryServiceStub(ingest)))
        record = RecordJob(database, redis, dispatcher)
        mail = MailJob(EmailChannel(settings.mail_server), settings.mail_from, redis, jobs_redis)
        actor_on_loop(recording, RECORD_NOTIFICATIONS, record, never_retry=(DecodeError,), outlasts=is_outage)
        deliver, threads = DeliverJob(database, channels, jobs_redis), settings.notify_worker_threads
        actor_on_loop(posting, SEND_DELIVERY, deliver, never_retry=(DecodeError,), outlasts=is_outage)
        actor_on_loop(mailing, DELIVER_EMAIL, deliver, never_retry=(DecodeError,), outlasts=is_outage)
        actor_on_loop(mailing, SEND_EMAIL, mail, never_retry=(DecodeError, Failed), outlasts=is_outage)
        yield [
            JobWorker(recording, [RECORD_NOTIFICATIONS.queue_name()], threads=_LEDGER_THREADS),
            JobWorker(posting, [SEND_DELIVERY.queue_name()], threads=threads),
            JobWorker(mailing, [SEND_EMAIL.queue_name()], threads=threads),
            Sweep(15, lambda: send_due(database, outbox, now_ms()), "deliveries to look at again wait"),
            Sweep(15 * 60, lambda: forget_old(database, now_ms() - KEPT_MS), "the ledger keeps what is old"),
            *(outbox, receipts),
        ]
