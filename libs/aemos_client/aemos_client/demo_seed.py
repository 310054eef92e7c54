"""The demo organization: made at the first start through the services' own gRPC, then described in demo.json."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from aemos.v1 import device_pb2 as device
from aemos.v1 import device_pb2_grpc as device_rpc
from aemos.v1 import device_state_pb2 as state
from aemos.v1 import device_state_pb2_grpc as state_rpc
from aemos.v1 import identity_pb2 as identity
from aemos.v1 import identity_pb2_grpc as identity_rpc
from aemos.v1 import rule_chain_pb2 as chain
from aemos.v1 import rule_chain_pb2_grpc as chain_rpc
from aemos.v1 import sensor_pb2 as sensor
from aemos.v1 import sensor_pb2_grpc as sensor_rpc
from aemos.v1 import telemetry_data_pb2 as variable
from aemos.v1 import telemetry_data_pb2_grpc as variable_rpc
from aemos_core.identity import Caller, set_caller
from aemos_core.rpc import open_channel

EMAIL = "demo@aemos.example"
_AT_ONCE = 8
_SERVICES = ("gateway", "ingest", "rules", "scheduler", "notify")
_SCHEDULES = (
    ("Hourly Temperature Check", "0 0 * * * *"),
    ("Daily Report Generator", "0 0 0 * * *"),
    ("Every 5 Min Sensor Scan", "0 */5 * * * *"),
)


async def seed(var: Path, environment: Mapping[str, str]) -> str:
    """Seeds once, writes `demo.json`, and returns the banner."""
    path = var / "seeded.json"
    if not path.exists():
        async with AsyncExitStack() as stack:
            seeded = await _Seeder(stack, environment).seed(int(environment["AEMOS_DEMO_DEVICES"]))
        _write(path, seeded)
    demo = _addresses(environment) | json.loads(path.read_text(encoding="utf-8"))
    _write(var / "demo.json", demo)
    return _banner(demo, var)


def _write(path: Path, content: Any) -> None:
    """Whole or not at all, and for its owner only: it holds tokens."""
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(fresh, path)


def _addresses(environment: Mapping[str, str]) -> dict[str, Any]:
    def port(name: str) -> int:
        return int(environment[f"AEMOS_{name}_PORT"])

    return {
        "httpUrl": f"http://127.0.0.1:{port('HTTP')}",
        "socketIoUrl": f"http://127.0.0.1:{port('SOCKETIO')}",
        "mqtt": {"host": "127.0.0.1", "port": port("MQTT")},
        "coapUrl": f"coap://127.0.0.1:{port('COAP')}",
        "grpc": {name: f"127.0.0.1:{port(f'{name.upper()}_GRPC')}" for name in _SERVICES},
    }


def _banner(demo: Mapping[str, Any], var: Path) -> str:
    one, login = demo["devices"][0], demo["login"]
    body = '{"value": "25.5", "variableName": "temperature"}'
    return f"""
AEMOS is up. Ctrl-C stops it.
  HTTP       {demo["httpUrl"]}   (REST under /api/v1, documentation under /docs)
  Socket.IO  {demo["socketIoUrl"]}
  MQTT       {demo["mqtt"]["host"]}:{demo["mqtt"]["port"]}
  CoAP       {demo["coapUrl"]}
  login      {login["email"]} / {login["password"]}
Everything else is in {var / "demo.json"}. A first reading, which raises an alert:
  curl -X POST {demo["httpUrl"]}/api/v1/datastreams/token -H 'Authorization: Bearer {one["token"]}' -d '{body}'
"""


class _Seeder:
    def __init__(self, stack: AsyncExitStack, environment: Mapping[str, str]) -> None:
        self._stack = stack
        self._environment = environment

    async def _channel(self, service: str) -> Any:
        target = self._environment[f"AEMOS_{service.upper()}_TARGET"]
        return await self._stack.enter_async_context(open_channel(target, self._environment["AEMOS_SERVICE_SECRET"]))

    async def seed(self, count: int) -> dict[str, Any]:
        """The organization with its devices and chains."""
        ingest, rules = await self._channel("ingest"), await self._channel("rules")
        login = {"email": EMAIL, "password": secrets.token_urlsafe(9)}
        people = identity_rpc.IdentityServiceStub(ingest)
        await people.CreateOrganization(
            identity.CreateOrganizationRequest(name="Demo", admin_email=EMAIL, admin_password=login["password"])
        )
        tokens = await people.Login(identity.LoginRequest(**login))
        set_caller(Caller(0, 0, "admin", tokens.access_token))
        self._devices = device_rpc.DeviceServiceStub(ingest)
        self._sensors = sensor_rpc.SensorServiceStub(ingest)
        self._variables = variable_rpc.TelemetryDataServiceStub(ingest)
        self._states = state_rpc.DeviceStateServiceStub(rules)
        self._chains = chain_rpc.RuleChainServiceStub(rules)
        self._made: list[dict[str, Any]] = []
        at_once = asyncio.Semaphore(_AT_ONCE)
        devices = await asyncio.gather(*(self._device(number, at_once) for number in range(1, count + 1)))
        for name, cron in _SCHEDULES if devices else ():
            await self._scheduled(name, cron, devices[0]["stateId"])
        for one in devices:
            del one["stateId"]
        return {"login": login, "devices": devices, "ruleChains": sorted(self._made, key=lambda made: made["id"])}

    async def _device(self, number: int, at_once: asyncio.Semaphore) -> dict[str, Any]:
        async with at_once:
            return await self._equipped(number)

    async def _equipped(self, number: int) -> dict[str, Any]:
        made = await self._devices.CreateDevice(device.CreateDeviceRequest(name=f"Demo device {number}"))
        part = await self._sensors.CreateSensor(sensor.CreateSensorRequest(device=made.uuid, name="Thermometer"))
        await self._variables.CreateTelemetryData(
            variable.CreateTelemetryDataRequest(sensor=part.uuid, variable_name="temperature", type="number", unit="°C")
        )
        token = await self._devices.CreateDeviceToken(device.CreateDeviceTokenRequest(device=made.uuid, name="demo"))
        alert = await self._states.CreateDeviceState(
            state.CreateDeviceStateRequest(device=made.uuid, name="temperatureAlert", default_value="normal")
        )
        await self._chain("High Temperature Alert", part.uuid, "value > 25", alert.id, "warning", convert=True)
        await self._chain("Temperature Normal", part.uuid, "value <= 25", alert.id, "normal", convert=False)
        return {
            "id": made.id,
            "uuid": made.uuid,
            "token": token.token,
            "sensorId": part.id,
            "sensorUuid": part.uuid,
            "stateId": alert.id,
        }

    async def _chain(
        self, name: str, sensor_uuid: str, condition: str, state_id: int, value: str, *, convert: bool
    ) -> None:
        nodes = [_node("filter", condition, {"sensorUUID": sensor_uuid, "condition": condition})]
        if convert:
            nodes.append(_node("transform", "to Fahrenheit", {"action": "convertToFahrenheit"}))
        nodes.append(_set_state(state_id, value))
        await self._make(chain.CreateRuleChainRequest(name=name, nodes=nodes))

    async def _scheduled(self, name: str, cron: str, state_id: int) -> None:
        request = chain.CreateRuleChainRequest(
            name=name, nodes=[_set_state(state_id, "normal")], cron_expression=cron, timezone="UTC"
        )
        await self._make(request)

    async def _make(self, request: chain.CreateRuleChainRequest) -> None:
        made = await self._chains.CreateRuleChain(request)
        self._made.append({"id": made.id, "name": made.name})


def _set_state(state_id: int, value: str) -> chain.Node:
    config = {"action": "sendNotification", "deviceStateId": state_id, "newStateValue": value}
    return _node("action", f"set {value}", config)


def _node(kind: str, name: str, config: Mapping[str, Any]) -> chain.Node:
    node = chain.Node(type=kind, name=name)
    node.config.update(config)
    return node
