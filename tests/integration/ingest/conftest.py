"""A world of readings for tests of ingest's history."""

from __future__ import annotations

import pytest
from aemos_core.database import Database
from aemos_core.redis_link import RedisClient

from tests.support.history_world import World, made_world


@pytest.fixture
async def world(database: Database, redis: RedisClient) -> World:
    """Two organizations whose sensors have no readings."""
    return await made_world(database, redis)
