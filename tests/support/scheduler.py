"""Real scheduler processes, and all that is around them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import grpc
import jwt
import sqlalchemy
from aemos.v1 import identity_pb2, identity_pb2_grpc, job_pb2, rule_chain_pb2, rule_chain_pb2_grpc
from aemos_core.broker import open_broker
from aemos_core.database import open_database
from aemos_core.identity import AUDIENCE, ISSUER
from aemos_core.jobs import RUN_CHAINS, Job
from aemos_core.outbox_senders import send_receipt
from aemos_core.redis_link import open_redis
from aemos_core.times import now_ms
from aemos_core.worker import JobWorker, actor_on_loop
from aemos_scheduler.tables import firing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.ports import free_port

SECRET = "a secret of the test"
PARTITIONS = 2
START_S = 60.0  # for a process to start on a machine that is busy with other tests


class FakeRules(rule_chain_pb2_grpc.RuleChainServiceServicer):
    """rules with these schedules, at most `page` on a page."""

    def __init__(self, page: int) -> None:
        self.page = page
        self.present: list[rule_chain_pb2.Schedule] = []
        self.calls = self.changes = 0

    def add(self, chain: int, organization: int, expression: str, misfire: str = "run-once", since_ms: int = 0) -> None:
        self.present.append(
            rule_chain_pb2.Schedule(
                rule_chain_id=chain,
                organization_id=organization,
                cron_expression=expression,
                misfire_policy=misfire,
                overlap_policy="allow",
                since_ms=since_ms or now_ms(),
            )
        )

    async def ListSchedules(
        self, request: rule_chain_pb2.ListSchedulesRequest, context: object
    ) -> rule_chain_pb2.ListSchedulesResponse:
        self.calls += 1
        start = int(request.page_token or 0)
        end = start + min(self.page, request.page_size)
        token = str(end) if end < len(self.present) else ""
        page = self.present[start:end]
        return rule_chain_pb2.ListSchedulesResponse(schedules=page, next_page_token=token, now_ms=now_ms())

    async def ListScheduleChanges(
        self, request: rule_chain_pb2.ListScheduleChangesRequest, context: object
    ) -> rule_chain_pb2.ListScheduleChangesResponse:
        self.changes += 1
        changed = [s for s in self.present if s.since_ms >= request.since_ms - 1_000]
        return rule_chain_pb2.ListScheduleChangesResponse(schedules=changed, now_ms=now_ms())

    async def SetSchedulePaused(
        self, request: rule_chain_pb2.SetSchedulePausedRequest, context: object
    ) -> rule_chain_pb2.SetSchedulePausedResponse:
        (schedule,) = (s for s in self.present if s.rule_chain_id == request.rule_chain_id)
        schedule.paused, schedule.since_ms = request.paused, now_ms()
        return rule_chain_pb2.SetSchedulePausedResponse(schedule=schedule)


class FakeIdentity(identity_pb2_grpc.IdentityServiceServicer):
    """Hands out the public key of the tokens that it signs."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()

    def bearer(self, organization: int) -> tuple[tuple[str, str]]:
        """Metadata of an operator of this organization."""
        now = now_ms() // 1000
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "1", "sid": "1", "org": organization, "role": "operator"}
        token = jwt.encode(claims | {"iat": now, "exp": now + 300}, self._key, "EdDSA", headers={"kid": "k"})
        return (("authorization", f"Bearer {token}"),)

    async def GetSigningKeys(
        self, request: identity_pb2.GetSigningKeysRequest, context: object
    ) -> identity_pb2.GetSigningKeysResponse:
        key = identity_pb2.SigningKey(kid="k", public_key=self._key.public_key().public_bytes_raw())
        return identity_pb2.GetSigningKeysResponse(keys=[key])


class World:
    """Everything around a scheduler: fakes on a real gRPC port, a real Redis, and a worker that notes its runs."""

    def __init__(self, redis_url: str, database_url: str, page: int = 2) -> None:
        self.rules = FakeRules(page)  # type: ignore[abstract]  # what nobody calls answers UNIMPLEMENTED
        self.identity = FakeIdentity()  # type: ignore[abstract]
        self.redis_url, self.port = redis_url, free_port()
        self.database_url = database_url
        self.runs: list[tuple[int, int]] = []
        self.organizations: set[int] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[World]:
        server = grpc.aio.server()
        rule_chain_pb2_grpc.add_RuleChainServiceServicer_to_server(self.rules, server)
        identity_pb2_grpc.add_IdentityServiceServicer_to_server(self.identity, server)
        server.add_insecure_port(f"127.0.0.1:{self.port}")
        await server.start()
        stop = asyncio.Event()
        broker = open_broker(self.redis_url[:-1] + "1")
        async with open_redis(self.redis_url[:-1] + "1") as redis:

            async def work(payload: bytes, job: Job) -> None:
                for run in job_pb2.ScheduledRuns.FromString(payload).runs:
                    self.runs.append((run.rule_chain_id, run.planned_at_ms))
                    self.organizations.add(run.organization_id)
                await send_receipt(redis, job)

            actor_on_loop(broker, RUN_CHAINS, work)
            worker = JobWorker(broker, [RUN_CHAINS.queue_name(p) for p in range(PARTITIONS)])
            working = asyncio.create_task(worker.run(stop))
            try:
                yield self
            finally:
                stop.set()
                await working
                broker.close()
                await server.stop(0)

    def start(self, *arguments: str, port: int = 0) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "AEMOS_SCHEDULER_GRPC_PORT": str(port or free_port()),
            "AEMOS_SERVICE_SECRET": SECRET,
            "AEMOS_DATABASE_URL": self.database_url,
            "AEMOS_REDIS_URL": self.redis_url,
            "AEMOS_RULES_PARTITIONS": str(PARTITIONS),
            "AEMOS_RULES_TARGET": f"127.0.0.1:{self.port}",
            "AEMOS_INGEST_TARGET": f"127.0.0.1:{self.port}",
        }
        return subprocess.Popen([sys.executable, "-m", "aemos_scheduler", *arguments], env=environment)

    @contextmanager
    def schedulers(self, *ports: int) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Real scheduler processes on one migrated database; killed at the end."""
        assert self.start("migrate").wait(START_S) == 0
        processes = [self.start(port=port) for port in ports]
        try:
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.wait()

    async def fired(self) -> set[tuple[int, int]]:
        """(chain id, planned time) of each row of the table."""
        url = self.database_url.format(service="scheduler")
        async with open_database(url) as database, database.read() as connection:
            rows = await connection.execute(sqlalchemy.select(firing.c.rule_chain_id, firing.c.planned_at_ms))
            return {(row.rule_chain_id, row.planned_at_ms) for row in rows}

    def runs_of(self, chain: int) -> list[int]:
        return [planned for each, planned in self.runs if each == chain]
