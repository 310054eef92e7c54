"""Settings of the gateway."""

from __future__ import annotations

from aemos_core.settings import ServiceSettings
from pydantic import Field


class GatewaySettings(ServiceSettings):
    """What gateway reads beside what every process reads."""

    http_port: int = Field(3000, ge=1, le=65535, description="HTTP port: REST, and readings of devices.")
    mqtt_port: int = Field(1883, ge=1, le=65535, description="MQTT port of devices.")
    coap_port: int = Field(5683, ge=1, le=65535, description="CoAP port (UDP) of devices.")
    device_readings_per_second: int = Field(
        2_000, ge=1, description="Readings a second from one device at one gateway process; more are refused."
    )
    organization_readings_per_second: int = Field(
        100_000, ge=1, description="Readings a second from one organization at one gateway process; more are refused."
    )
    device_silent_seconds: float = Field(
        300.0, ge=1, description="After so long without a reading a device without a connection is offline."
    )
    gateway_grpc_port: int = Field(50050, ge=1, le=65535, description="gRPC port of gateway.")
