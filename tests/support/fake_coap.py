"""What stands behind the CoAP edge in tests: two devices, and an ingest that stores in a list."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

from aemos.v1.data_stream_pb2 import WriteResult
from aemos_core.errors import AemosError, unauthenticated
from aemos_gateway import coap_exchanges
from aemos_gateway.coap_edge import CoapEdge
from aemos_gateway.device_auth import Device, DeviceAuth
from aemos_gateway.downlink import Downlink
from aemos_gateway.presence import Presence
from aemos_gateway.readings import Reading, Receipt, decode
from aemos_gateway.service import ONCE, Done, Origin, Uplink

from tests.support.fake_rejections import FakeRejections

OURS = Device(token_id=1, organization_id=1, device_id=42, device_uuid="abc-123")
THEIRS = Device(token_id=2, organization_id=2, device_id=43, device_uuid="def-456")
TOKEN, THEIR_TOKEN = b"aemos_device_token_of_ours", b"aemos_device_token_of_theirs"


def receipt(reading_id: int, sensor_uuid: str, reading: Reading) -> Receipt:
    """A reading is stored."""
    return Receipt([(reading, WriteResult(id=reading_id, telemetry_data_id=5, sensor_uuid=sensor_uuid))])


class FakeAuth(DeviceAuth):
    """Knows two tokens; a token is in memory from its first look-up, or from the start."""

    def __init__(self, *, warm: bool = True) -> None:
        self.devices = {TOKEN: OURS, THEIR_TOKEN: THEIRS}
        self.in_memory = dict(self.devices) if warm else {}
        self.lookups = 0

    def known(self, token: bytes) -> Device | None:
        return self.in_memory.get(token)

    async def resolve(self, token: bytes) -> Device:
        if token not in self.in_memory:
            self.lookups += 1
            await asyncio.sleep(0)
            if token not in self.devices:
                raise unauthenticated()
            self.in_memory[token] = self.devices[token]
        return self.in_memory[token]

    def revoke(self, token: bytes) -> None:
        self.devices.pop(token)
        self.in_memory.pop(token, None)


class FakeUplink(Uplink):
    """Commits at the end of the loop's turn; while `held` it commits nothing until `release`."""

    def __init__(self) -> None:
        self.rejections = self.refused = FakeRejections()
        self.presence = Presence(None)  # type: ignore[arg-type]
        self.readings: list[Reading] = []
        self.protocols: set[str] = set()
        self.origins: list[Origin] = []
        self.partial = False
        self.held = False
        self.refusal: AemosError | None = None
        self._waiting: list[tuple[Reading, Done]] = []

    def put(
        self,
        device: Device,
        payload: bytes,
        protocol: str,
        done: Done,
        origin: Origin = ONCE,
        *,
        is_partial: bool = False,
    ) -> None:
        (reading,) = decode(payload).readings
        self.partial = is_partial
        self.protocols.add(protocol)
        self.readings.append(reading)
        self.origins.append(origin)
        self._waiting.append((reading, done))
        if not self.held:
            asyncio.get_running_loop().call_soon(self.release)

    def release(self) -> None:
        waiting, self._waiting = self._waiting, []
        for reading, done in waiting:
            done(self.refusal or receipt(len(self.readings), "sensor-abc-123", reading))


@dataclass
class Edge:
    """A running edge and what stands behind it."""

    auth: FakeAuth = field(default_factory=FakeAuth)
    uplink: FakeUplink = field(default_factory=FakeUplink)
    downlink: Downlink = field(default_factory=Downlink)
    port: int = 0
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def base(self) -> str:
        return f"coap://127.0.0.1:{self.port}"

    def readings_url(self, token: bytes = TOKEN) -> str:
        return f"{self.base}/api/v1/datastreams/token?token={token.decode()}"

    def notifications_url(self, device_uuid: str = OURS.device_uuid, token: bytes = TOKEN) -> str:
        return f"{self.base}/api/v1/devices/{device_uuid}/notifications?token={token.decode()}"


@asynccontextmanager
async def running_edge(edge: Edge, host: str = "127.0.0.1", settle_s: float = 0.1) -> AsyncIterator[CoapEdge]:
    """The edge on a free port, running as a component until the end of the block; there it waits `settle_s` for
    acknowledgements, since few tests send any."""
    with patch.object(coap_exchanges, "SETTLE_SECONDS", settle_s):
        async with aclosing(CoapEdge(host, 0, edge.auth, edge.uplink, edge.downlink)) as component:
            edge.port = component.port
            task = asyncio.create_task(component.run(edge.stop))
            try:
                yield component
            finally:
                edge.stop.set()
                edge.uplink.release()
                await asyncio.wait_for(task, 5)
