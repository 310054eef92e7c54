"""Assembles the ingest service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial

from aemos_core.announce import Announcer
from aemos_core.broker import open_broker
from aemos_core.database import open_database
from aemos_core.jobs import EVALUATE_READINGS, JobQueue
from aemos_core.leases import PartitionLeases
from aemos_core.names import REGISTRY_CHANGED, RETENTION_LEASES
from aemos_core.outbox import Outbox
from aemos_core.outbox_senders import ANNOUNCE, AnnounceSender, JobSender, Receipts
from aemos_core.process import Component
from aemos_core.redis_link import RedisClient, Subscriber, open_redis
from aemos_core.rpc import grpc_server
from aemos_core.sweeping import Sweep, kept_for
from redis.exceptions import RedisError

from aemos_ingest import tables
from aemos_ingest.connectivity import Connectivity
from aemos_ingest.history_service import History
from aemos_ingest.identity_api import IdentityServicer
from aemos_ingest.latest import LatestReadings
from aemos_ingest.readings_api import DataStreamServicer
from aemos_ingest.readings_service import Readings
from aemos_ingest.registry_api import DeviceServicer, SensorServicer, TelemetryDataServicer
from aemos_ingest.rejections import Rejections
from aemos_ingest.retention import KEPT, Retention
from aemos_ingest.settings import IngestSettings
from aemos_ingest.sightings import Sightings
from aemos_ingest.sources import Sources

_AGGREGATING = 3
"""Aggregates under way at a time, so that who asks for much delays nobody's readings; others wait for two seconds."""


async def _announce_change(sources: Sources, redis: RedisClient) -> None:
    await sources.refresh()
    with suppress(RedisError, OSError):  # a hint: whoever misses it polls
        await redis.publish(REGISTRY_CHANGED, b"")


@asynccontextmanager
async def wire(settings: IngestSettings) -> AsyncIterator[Sequence[Component]]:
    """Opens what the ingest service needs, in order; closes it in reverse."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(open_database(settings.database_of("ingest"), settings.ingest_connections))
        aggregating = await enter(open_database(settings.database_of("ingest"), _AGGREGATING, for_queries=True))
        redis = await enter(open_redis(settings.redis_url))
        jobs_redis = await enter(open_redis(settings.jobs_url))
        queue = JobQueue(open_broker(settings.jobs_url))
        stack.callback(queue.close)

        outbox = Outbox(database, tables.outbox)
        receipts = Receipts(jobs_redis, outbox.relay_id)
        outbox.add_sender(EVALUATE_READINGS.name, JobSender(queue, EVALUATE_READINGS, jobs_redis, receipts))
        outbox.add_sender(ANNOUNCE, AnnounceSender(Announcer(redis), redis))
        sources = Sources(database, settings.rules_partitions)
        announce_change = partial(_announce_change, sources, redis)
        sightings = Sightings(database, sources)
        identity = IdentityServicer(database, sightings)
        await identity.load_keys()
        latest = LatestReadings(database, redis)
        readings = Readings(database, outbox, sources, sightings, redis, latest)
        history = History(database, aggregating, latest)
        connectivity = Connectivity(database, outbox)
        leases = PartitionLeases(redis, 1, prefix=RETENTION_LEASES)
        servicers = [
            identity,
            DeviceServicer(database, announce_change),
            connectivity,
            Rejections(database),
            SensorServicer(database, announce_change),
            TelemetryDataServicer(database, announce_change),
            DataStreamServicer(readings, history),
            history,
        ]
        server = await enter(grpc_server(settings, "ingest", identity.verifier, servicers))
        subscriber = Subscriber(redis, {REGISTRY_CHANGED: sources.look_again}, sources.look_again)
        yield [
            *(server, readings, latest, outbox, receipts, sources, sightings, subscriber),
            *(connectivity, leases, Retention(database, leases)),
            *(Sweep(60, kept_for(database, at_ms, kept_ms), "what is old stays") for at_ms, kept_ms in KEPT),
        ]
