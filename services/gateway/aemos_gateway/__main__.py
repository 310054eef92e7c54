"""`python -m aemos_gateway`: the gateway."""

from aemos_core import process, settings

from aemos_gateway.settings import GatewaySettings
from aemos_gateway.wiring import wire

loaded = settings.load(GatewaySettings)
process.run("gateway", loaded, lambda: wire(loaded))
