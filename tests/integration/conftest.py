"""Databases for store tests, each of which runs on SQLite and on MariaDB (ask for `database`), and a Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from importlib import import_module
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Protocol

import pytest
from aemos_core.database import Database, migrate, open_database
from aemos_core.identity import ANYBODY, set_caller
from aemos_core.redis_link import RedisClient, open_redis

from tests.support.mariadb import mariadb_server
from tests.support.redis_server import redis_server

_numbers = count()


@pytest.fixture(scope="session")
def mariadb_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A MariaDB for the whole session; {service} stands for the database."""
    with mariadb_server(tmp_path_factory.mktemp("mariadb")) as url:
        yield url


@pytest.fixture(autouse=True)
async def _nobody() -> None:
    """Each test begins as nobody: async fixtures share one context, and would pass their caller on."""
    set_caller(ANYBODY)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis for the module's tests."""
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[RedisClient]:
    """A client of it, with nothing in it."""
    async with open_redis(redis_url) as client:
        await client.flushall()
        yield client


class Open(Protocol):
    """Opens an owner's migrated, empty database."""

    async def __call__(self, package: ModuleType) -> Database:
        """For the owner's package, such as aemos_ingest."""


@pytest.fixture(params=["sqlite", "mariadb"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database's URL."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/test.db"
    url: str = request.getfixturevalue("mariadb_url")
    return url.replace("{service}", f"test_{next(_numbers)}")


@pytest.fixture
async def open_owned(database_url: str) -> AsyncIterator[Open]:
    """Opens the database of a service, at its newest revision."""
    async with AsyncExitStack() as stack:

        async def open_(package: ModuleType) -> Database:
            await migrate(database_url, package.__name__)
            return await stack.enter_async_context(open_database(database_url))

        yield open_


@pytest.fixture
def service(request: pytest.FixtureRequest) -> str:
    """Whose tables `database` has: the test's folder; a test elsewhere overrides this."""
    return request.path.parent.name


@pytest.fixture
async def database(open_owned: Open, service: str) -> Database:
    """The service's database, empty, at its newest revision."""
    return await open_owned(import_module(f"aemos_{service}"))
