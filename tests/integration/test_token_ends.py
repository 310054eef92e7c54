"""A token that ends is known no more at every gateway within 5 s, hints of Redis or not (hard case 4)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aemos_ingest
import pytest
from aemos.v1 import identity_pb2
from aemos_core.database import Database
from aemos_core.errors import AemosError
from aemos_core.times import now_ms, to_timestamp
from aemos_gateway.device_auth import DeviceAuth

from tests.integration.conftest import Open
from tests.support.fake_mqtt_ports import Raw, connect, world
from tests.support.ingest import Ingest, ingest
from tests.support.redis_server import until

EFFECTIVE_S = 5.0


@pytest.fixture
def database_url(tmp_path: Any) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/test.db"


@pytest.fixture
async def database(open_owned: Open) -> Database:
    return await open_owned(aemos_ingest)


class _Near:
    """Ingest's answers to a gateway, without a network between."""

    def __init__(self, one: Ingest) -> None:
        self._servicer = one.registry.identity

    async def ResolveDeviceTokens(
        self, request: identity_pb2.ResolveDeviceTokensRequest
    ) -> identity_pb2.ResolveDeviceTokensResponse:
        return await self._servicer.ResolveDeviceTokens(request, None)  # type: ignore[arg-type]

    async def ListRegistryChanges(
        self, request: identity_pb2.ListRegistryChangesRequest, wait_for_ready: bool
    ) -> identity_pb2.ListRegistryChangesResponse:
        assert wait_for_ready
        return await self._servicer.ListRegistryChanges(request, None)  # type: ignore[arg-type]


def knowing(one: Ingest) -> DeviceAuth:
    """What a gateway process knows of tokens; it hears no hint."""
    return DeviceAuth(_Near(one))  # type: ignore[arg-type]


@asynccontextmanager
async def running(*auths: DeviceAuth) -> AsyncIterator[None]:
    """They poll until the end of the block."""
    stop = asyncio.Event()
    tasks = [asyncio.create_task(auth.run(stop)) for auth in auths]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def test_a_revoked_token_ends_at_every_gateway(database: Database) -> None:
    """And an MQTT session that was opened with it is closed, though nothing is sent."""
    async with ingest(database) as one:
        near, far = knowing(one), knowing(one)
        async with world(real_auth=near) as it, running(near, far):
            made = await one.registry.create_token()
            secret = made.token
            other = (await one.registry.create_token("other")).token
            device = await Raw.connected(it, connect_with=connect(secret, uuid="freezer-1"))
            beside = await Raw.connected(it, connect_with=connect(other, uuid="freezer-1", client="c2"))
            await far.resolve(secret.encode())
            await one.registry.revoke_token(made.id)
            await until(lambda: not any(auth.known(secret.encode()) for auth in (near, far)), EFFECTIVE_S)
            assert await device.rest() == []
            assert await beside.alive()
            for auth in (near, far):
                with pytest.raises(AemosError):
                    await auth.resolve(secret.encode())


async def test_an_expired_token_ends_by_itself(database: Database) -> None:
    """Nobody has to be told: a gateway knows until when a token is good."""
    async with ingest(database) as one:
        near, far = knowing(one), knowing(one)
        async with world(real_auth=near) as it, running(near, far):
            made = await one.registry.create_token(expires_at=to_timestamp(now_ms() + 700))
            secret, ends = made.token, made.expires_at.ToMilliseconds()
            device = await Raw.connected(it, connect_with=connect(secret, uuid="freezer-1"))
            await far.resolve(secret.encode())
            assert await device.rest() == []
            assert ends <= now_ms() <= ends + EFFECTIVE_S * 1000
            assert not far.known(secret.encode())


async def test_the_old_token_of_a_rotation_lives_for_the_overlap(database: Database) -> None:
    """A gateway that knew it learns that it ends."""
    async with ingest(database) as one:
        auth = knowing(one)
        async with running(auth):
            made = await one.registry.create_token()
            secret = made.token
            await auth.resolve(secret.encode())
            fresh = (await one.registry.rotate_token(made.id, 1)).token
            assert (await auth.resolve(fresh.encode())).device_uuid == "freezer-1"
            await until(lambda: not auth.known(secret.encode()), EFFECTIVE_S)
            await until(lambda: now_ms() > made.created_at.ToMilliseconds() + 1_500, EFFECTIVE_S)
            with pytest.raises(AemosError):
                await auth.resolve(secret.encode())
