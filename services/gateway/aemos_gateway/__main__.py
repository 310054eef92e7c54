"""`python -m aemos_gateway`: the gateway."""

from aemos_core.process import main

from aemos_gateway.settings import GatewaySettings
from aemos_gateway.wiring import wire

main("aemos_gateway", GatewaySettings, wire)
