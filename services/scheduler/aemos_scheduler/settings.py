"""What the scheduler reads from the environment."""

from __future__ import annotations

from aemos_core.settings import ServiceSettings
from pydantic import Field


class SchedulerSettings(ServiceSettings):
    """Beside what every service reads."""

    scheduler_grpc_port: int = Field(50053, ge=1, le=65535, description="Where the scheduler's gRPC API listens.")
