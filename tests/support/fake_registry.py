"""A fake ingest and rules, as far as edges need them: signing keys, user tokens, and what organizations have."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
from aemos.v1 import (
    device_pb2,
    device_pb2_grpc,
    identity_pb2,
    identity_pb2_grpc,
    rule_chain_pb2,
    rule_chain_pb2_grpc,
    sensor_pb2,
    sensor_pb2_grpc,
)
from aemos_core.errors import not_found
from aemos_core.identity import AUDIENCE, ISSUER, TokenVerifier, Trust, caller
from aemos_core.rpc import Context, grpc_server
from aemos_ingest.settings import IngestSettings
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.ports import free_port

SECRET = "a secret of tests"


class FakeRegistry(identity_pb2_grpc.IdentityServiceServicer):
    """Hands out tokens and knows devices: `{uuid: (id, organization id)}`.

    Each device has a sensor `s-{uuid}`, and there is a rule chain of the same id.
    """

    def __init__(self, devices: dict[str, tuple[int, int]]) -> None:
        self.devices = devices
        self.key = Ed25519PrivateKey.generate()
        self.ended: set[int] = set()
        self.port = free_port()
        self.target = f"127.0.0.1:{self.port}"

    def claims(self, organization_id: int = 1, **changes: Any) -> dict[str, Any]:
        """Of a good token; a change to None leaves a claim out."""
        now = time.time()
        good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "7", "sid": "3", "org": organization_id, "role": "viewer"}
        return {k: v for k, v in {**good, "iat": now, "exp": now + 60, **changes}.items() if v is not None}

    def token(self, organization_id: int = 1, **changes: Any) -> str:
        """A signed user token."""
        return jwt.encode(self.claims(organization_id, **changes), self.key, "EdDSA", headers={"kid": "k1"})

    async def GetSigningKeys(
        self, request: identity_pb2.GetSigningKeysRequest, context: Context
    ) -> identity_pb2.GetSigningKeysResponse:
        key = identity_pb2.SigningKey(kid="k1", public_key=self.key.public_key().public_bytes_raw())
        return identity_pb2.GetSigningKeysResponse(keys=[key], ended_sessions=self.ended)

    async def trust(self) -> Trust:
        return Trust({"k1": self.key.public_key()}, frozenset(self.ended))


class _Devices(device_pb2_grpc.DeviceServiceServicer):
    def __init__(self, registry: FakeRegistry) -> None:
        self._registry = registry

    async def GetDevice(self, request: device_pb2.GetDeviceRequest, context: Context) -> device_pb2.Device:
        for uuid, (device_id, organization_id) in self._registry.devices.items():
            if request.device in (uuid, str(device_id)) and organization_id == caller().organization_id:
                return device_pb2.Device(id=device_id, uuid=uuid)
        raise not_found("device")


class _Sensors(sensor_pb2_grpc.SensorServiceServicer):
    def __init__(self, registry: FakeRegistry) -> None:
        self._registry = registry

    async def GetSensor(self, request: sensor_pb2.GetSensorRequest, context: Context) -> sensor_pb2.Sensor:
        device = self._registry.devices.get(request.sensor.removeprefix("s-"))
        if device is None or device[1] != caller().organization_id:
            raise not_found("sensor")
        return sensor_pb2.Sensor(uuid=request.sensor)


class _RuleChains(rule_chain_pb2_grpc.RuleChainServiceServicer):
    def __init__(self, registry: FakeRegistry) -> None:
        self._registry = registry

    async def GetRuleChain(
        self, request: rule_chain_pb2.GetRuleChainRequest, context: Context
    ) -> rule_chain_pb2.RuleChain:
        if (request.id, caller().organization_id) not in self._registry.devices.values():
            raise not_found("rule chain")
        return rule_chain_pb2.RuleChain(id=request.id)


@asynccontextmanager
async def fake_registry(devices: dict[str, tuple[int, int]]) -> AsyncIterator[FakeRegistry]:
    """A registry that listens at its `target`."""
    registry = FakeRegistry(devices)  # type: ignore[abstract]
    servicers = [registry, _Devices(registry), _Sensors(registry), _RuleChains(registry)]  # type: ignore[abstract]
    settings = IngestSettings(ingest_grpc_port=registry.port, service_secret=SECRET)
    async with grpc_server(settings, "ingest", TokenVerifier(registry.trust), servicers):
        yield registry
