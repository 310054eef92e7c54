"""Settings of the rules service and its workers."""

from __future__ import annotations

from aemos_core.settings import ServiceSettings
from pydantic import Field


class RulesSettings(ServiceSettings):
    """What rules reads beside what every process reads."""

    report_days: int = Field(30, ge=1, le=3650, description="How many days reports are kept.")
    rules_grpc_port: int = Field(50052, ge=1, le=65535, description="gRPC port of rules.")
