"""Settings of the notify service and its worker."""

from __future__ import annotations

from aemos_core.settings import ServiceSettings
from pydantic import Field


class NotifySettings(ServiceSettings):
    """What notify reads beside what every process reads."""

    socketio_port: int = Field(3001, ge=1, le=65535, description="Socket.IO port, WebSocket only.")
    socketio_clients: int = Field(20_000, ge=1, description="Connections of one process; more are answered 503.")
    notify_grpc_port: int = Field(50054, ge=1, le=65535, description="gRPC port of notify.")
    notify_worker_threads: int = Field(20, ge=1, le=200, description="Jobs that one notify worker does at a time.")
