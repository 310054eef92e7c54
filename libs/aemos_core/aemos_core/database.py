"""Databases: one engine for each service, transactions with a deadline, errors in the table."""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, Connection, Dialect, Integer, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from aemos_core.errors import AemosError, Kind, unavailable

log = logging.getLogger("aemos.database")

TRANSACTION_SECONDS = 4.0
_TRUST_SECONDS = 1.0
"""A connection that rested longer is pinged before it is used; at each use it would be a round trip too many."""
_PREPARED = 64
"""Statements that each connection to MySQL keeps prepared, those used last: they bind binary, and many rows are one
round trip to MariaDB. A fifth of the CPU of a bulk insert, a tenth of that of a bulk update."""
_CUT = (
    f"SET @aemos = 1 /*M!, SESSION max_statement_time = {TRANSACTION_SECONDS:.0f} */"
    f" /*!80000 , SESSION max_execution_time = {TRANSACTION_SECONDS * 1000:.0f} */"
)
"""Each of the two servers reads its own comment."""
Id = BigInteger().with_variant(Integer, "sqlite")
"""Column type of ids: SQLite counts up only what it calls INTEGER."""
TABLE_ARGS: dict[str, Any] = {"mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin", "mysql_engine": "InnoDB"}
_READ_ONLY_SERVER = {1290, 1792, 1836}
"""MySQL says so after a failover, when we still hold connections to the old primary."""


class Database:
    """Transactions on one service's database.

    What the database cannot do now raises UNAVAILABLE, a broken unique rule EXISTS; a transaction is cut after
    `TRANSACTION_SECONDS`.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.is_sqlite = engine.dialect.name == "sqlite"

    def read(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection to read with."""
        return self._transaction({})

    def write(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A transaction that commits at the end of the block and is durable then."""
        return self._transaction({"aemos_write": True})

    @asynccontextmanager
    async def _transaction(self, options: dict[str, Any]) -> AsyncIterator[AsyncConnection]:
        try:
            async with asyncio.timeout(TRANSACTION_SECONDS), self.engine.connect() as connection:
                if options:
                    await connection.execution_options(**options)
                async with connection.begin():
                    yield connection
        except IntegrityError as error:
            raise AemosError(Kind.EXISTS, "it exists already") from error
        except (DBAPIError, PoolTimeout, OSError, TimeoutError) as error:
            if _is_data_error(error):
                raise
            if _code(error) in _READ_ONLY_SERVER:
                await self.engine.dispose()
            log.warning("database: %s", type(error).__name__, extra={"cause": str(getattr(error, "orig", error))})
            raise unavailable("the database did not answer") from error


def _code(error: BaseException) -> int | None:
    args = getattr(getattr(error, "orig", None), "args", ())
    return args[0] if args and isinstance(args[0], int) else None


def _is_data_error(error: BaseException) -> bool:
    """A statement that can never succeed, as against a server that cannot now."""
    transient = isinstance(error, OperationalError) or getattr(error, "connection_invalidated", False)
    return isinstance(error, DBAPIError) and not transient and type(error).__name__ != "InterfaceError"


@asynccontextmanager
async def open_database(url: str, pool_size: int = 8, *, for_queries: bool = False) -> AsyncIterator[Database]:
    """The service's database; every wait has a bound.

    Connections `for_queries`, which may read very much, are `pool_size` at the most, and what a caller has given up
    ends on the server too.
    """
    options = _engine_options(url, pool_size)
    if for_queries:
        options["max_overflow"] = 0
        if make_url(url).get_backend_name() != "sqlite":
            options["connect_args"]["init_command"] = _CUT
    engine = create_async_engine(url, **options)
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
    else:
        event.listen(engine.sync_engine, "do_connect", _connect)
        _ping_what_rested(engine)
    try:
        yield Database(engine)
    finally:
        await engine.dispose()


def _engine_options(url: str, pool_size: int) -> dict[str, Any]:
    if make_url(url).get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": 5, "isolation_level": None}, "pool_size": pool_size, "pool_timeout": 2}
    return {
        "connect_args": {
            "connect_timeout": 5,
            "read_timeout": 10,
            "charset": "utf8mb4",
            "stmt_cache_size": _PREPARED,
        },
        "isolation_level": "READ COMMITTED",
        "pool_size": pool_size,
        "max_overflow": 4,
        "pool_timeout": 2,
        "pool_use_lifo": True,
        # Every transaction here ends with its block, and one that was cut short loses its connection.
        "pool_reset_on_return": None,
    }


def _connect(dialect: Dialect, _record: object, args: Any, parameters: Any) -> Any:
    """asyncmy 0.2.18 raises RuntimeError when the server hangs up at once."""
    try:
        return dialect.connect(*args, **parameters)
    except RuntimeError as error:
        raise dialect.loaded_dbapi.OperationalError(2013, str(error)) from error


def _ping_what_rested(engine: AsyncEngine) -> None:
    dialect: Dialect = engine.dialect

    def rests(_connection: Any, record: Any) -> None:
        record.info["rests_since"] = time.monotonic()

    def is_taken(connection: Any, record: Any, _proxy: object) -> None:
        if time.monotonic() - record.info.get("rests_since", time.monotonic()) > _TRUST_SECONDS:
            try:
                dialect.do_ping(connection)
            except dialect.loaded_dbapi.Error as error:
                raise DisconnectionError from error

    event.listen(engine.sync_engine, "checkin", rests)
    event.listen(engine.sync_engine, "checkout", is_taken)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    # FULL: in WAL mode the log is synced at each commit, so what was acknowledged survives a power cut.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later would fail at once when another one writes between.
    writes = connection.get_execution_options().get("aemos_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


async def migrate(url: str, package: str) -> None:
    """Brings a service's database to the newest of the revisions beside its package, making it when it is missing."""
    directory = Path(str(importlib.import_module(package).__file__)).parents[1] / "migrations"
    # Alembic takes most of a second to import, and only a migration needs it.
    await importlib.import_module("aemos_core.migrations").migrate(url, directory)
