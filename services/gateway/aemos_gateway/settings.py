"""Settings of the gateway."""

from __future__ import annotations

from aemos_core.settings import ServiceSettings
from pydantic import Field


class GatewaySettings(ServiceSettings):
    """What gateway reads beside what every process reads."""

    http_port: int = Field(3000, ge=1, le=65535, description="HTTP port: REST, and readings of devices.")
    mqtt_port: int = Field(1883, ge=1, le=65535, description="MQTT port of devices.")
    coap_port: int = Field(5683, ge=1, le=65535, description="CoAP port (UDP) of devices.")
    gateway_grpc_port: int = Field(50050, ge=1, le=65535, description="gRPC port of gateway.")
