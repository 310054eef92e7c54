"""Settings from the environment: typed, read once, all mistakes reported together."""

from __future__ import annotations

import os
import socket
import sys
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.connection import parse_url

S = TypeVar("S", bound="ServiceSettings")


def _redis(url: str) -> str:
    try:
        parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:
        raise ValueError("is not a Redis URL, such as redis://host:6379/0") from None
    return url


def _secret(text: str) -> str:
    if not text:
        raise ValueError("is required (any long random text, the same for every service)")
    return text


def jobs_database(redis_url: str) -> str:
    """The URL of database 1 of the same server."""
    return redis_url.replace("?", "?db=1&", 1) if "?" in redis_url else f"{redis_url}?db=1"


class ServiceSettings(BaseSettings):
    """What every process reads. Each variable is the field's name in capitals behind `AEMOS_`."""

    model_config = SettingsConfigDict(env_prefix="AEMOS_", frozen=True, extra="ignore")

    database_url: str = Field(
        "sqlite+aiosqlite:///var/{service}.db",
        pattern=r"^(sqlite\+aiosqlite|(mysql|mariadb)\+asyncmy)://",
        description="SQLAlchemy URL with {service} in it: each service has a database of its own.",
    )
    redis_url: Annotated[str, AfterValidator(_redis)] = Field(
        "redis://127.0.0.1:6379/0", description="Pub/sub, notification log, caches."
    )
    queue_redis_url: Annotated[str, AfterValidator(lambda url: url and _redis(url))] = Field(
        "", description="Jobs. Default: the same server, database 1."
    )
    service_secret: Annotated[str, AfterValidator(_secret)] = Field(
        "", validate_default=True, description="What services prove themselves with to each other; required."
    )
    bind: str = Field("127.0.0.1", description="Address that every listener binds to.")
    drain_seconds: float = Field(25.0, gt=0, description="How long a process may finish its work after SIGTERM.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="DEBUG, INFO, WARNING or ERROR, for our own records."
    )
    trace_dir: str = Field("", description="Where sampled spans go while there is no collector; empty: nowhere.")
    otlp_endpoint: str = Field("", description="OTLP/gRPC collector for spans, such as http://collector:4317.")
    traces_per_second: float = Field(20.0, ge=0, description="New traces a second and process at the most.")
    rules_partitions: int = Field(1, ge=1, le=256, description="Rule workers that share the work; fixed for good.")
    ingest_target: str = Field("127.0.0.1:50051", description="gRPC address of ingest.")
    rules_target: str = Field("127.0.0.1:50052", description="gRPC address of rules.")
    scheduler_target: str = Field("127.0.0.1:50053", description="gRPC address of scheduler.")
    notify_target: str = Field("127.0.0.1:50054", description="gRPC address of notify.")

    @property
    def jobs_url(self) -> str:
        """Redis URL of the queue."""
        return self.queue_redis_url or jobs_database(self.redis_url)

    def database_of(self, service: str) -> str:
        """Database URL of one service."""
        return self.database_url.replace("{service}", service)


def load(cls: type[S]) -> S:
    """The settings, or exit status 2 after one line for each mistake, naming its variable."""
    try:
        return cls()
    except ValidationError as error:
        for mistake in error.errors():
            name = "AEMOS_" + "_".join(str(part) for part in mistake["loc"]).upper()
            print(f"{name}: {mistake['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        raise SystemExit(2) from None


def process_name() -> str:
    """Names this process in leases and logs."""
    return f"{socket.gethostname()}-{os.getpid()}"
