"""Settings of the ingest service."""

from __future__ import annotations

from aemos_core.settings import ServiceSettings
from pydantic import Field


class IngestSettings(ServiceSettings):
    """What ingest reads beside what every process reads."""

    ingest_grpc_port: int = Field(50051, ge=1, le=65535, description="gRPC port of ingest.")
    ingest_connections: int = Field(8, ge=2, le=100, description="Database connections of one ingest process.")
