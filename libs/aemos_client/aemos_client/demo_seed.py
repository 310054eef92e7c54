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

from aemos.v1.rule_chain_pb2 import Node
from aemos_core.contract import methods
from aemos_core.identity import Caller, set_caller
from aemos_core.rpc import open_channel

EMAIL = "demo@aemos.example"
_AT_ONCE = 8
_SECRET = "AEMOS_SERVICE_SECRET"
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
    """Calls what it needs by its name in the contract, as the demo's administrator once there is one."""

    def __init__(self, stack: AsyncExitStack, environment: Mapping[str, str]) -> None:
        self._stack = stack
        self._environment = environment
        self._channels: dict[str, Any] = {}
        self._made: list[dict[str, Any]] = []

    async def _call(self, owner: str, name: str, /, **fields: Any) -> Any:
        method = methods()[f"/aemos.v1.{name}"]
        serialize, parse = method.request.SerializeToString, method.response.FromString
        return await self._channels[owner].unary_unary(method.path, serialize, parse)(method.request(**fields))

    async def seed(self, count: int) -> dict[str, Any]:
        """The organization with its devices and chains."""
        for owner in ("ingest", "rules"):
            channel = open_channel(self._environment[f"AEMOS_{owner.upper()}_TARGET"], self._environment[_SECRET])
            self._channels[owner] = await self._stack.enter_async_context(channel)
        login = {"email": EMAIL, "password": secrets.token_urlsafe(9)}
        admin = {"admin_email": EMAIL, "admin_password": login["password"]}
        await self._call("ingest", "IdentityService/CreateOrganization", name="Demo", **admin)
        tokens = await self._call("ingest", "IdentityService/Login", **login)
        set_caller(Caller(0, 0, "admin", tokens.access_token))
        at_once = asyncio.Semaphore(_AT_ONCE)
        devices = await asyncio.gather(*(self._device(number, at_once) for number in range(1, count + 1)))
        for name, cron in _SCHEDULES if devices else ():
            await self._chain(name, _set_state(devices[0]["stateId"], "normal"), cron_expression=cron, timezone="UTC")
        for one in devices:
            del one["stateId"]
        return {"login": login, "devices": devices, "ruleChains": sorted(self._made, key=lambda made: made["id"])}

    async def _device(self, number: int, at_once: asyncio.Semaphore) -> dict[str, Any]:
        async with at_once:
            made = await self._call("ingest", "DeviceService/CreateDevice", name=f"Demo device {number}")
            of = {"device": made.uuid}
            sensor = await self._call("ingest", "SensorService/CreateSensor", name="Thermometer", **of)
            variable = {"variable_name": "temperature", "type": "number", "unit": "°C"}
            await self._call("ingest", "TelemetryDataService/CreateTelemetryData", sensor=sensor.uuid, **variable)
            token = await self._call("ingest", "DeviceService/CreateDeviceToken", name="demo", **of)
            state = {"name": "temperatureAlert", "default_value": "normal"}
            alert = await self._call("rules", "DeviceStateService/CreateDeviceState", **of, **state)
            convert = _node("transform", "to Fahrenheit", {"action": "convertToFahrenheit"})
            high, normal = _filter(sensor.uuid, "value > 25"), _filter(sensor.uuid, "value <= 25")
            await self._chain("High Temperature Alert", high, convert, _set_state(alert.id, "warning"))
            await self._chain("Temperature Normal", normal, _set_state(alert.id, "normal"))
        return {
            "id": made.id,
            "uuid": made.uuid,
            "token": token.token,
            "sensorId": sensor.id,
            "sensorUuid": sensor.uuid,
            "stateId": alert.id,
        }

    async def _chain(self, name: str, *nodes: Node, **fields: Any) -> None:
        made = await self._call("rules", "RuleChainService/CreateRuleChain", name=name, nodes=nodes, **fields)
        self._made.append({"id": made.id, "name": made.name})


def _filter(sensor_uuid: str, condition: str) -> Node:
    return _node("filter", condition, {"sensorUUID": sensor_uuid, "condition": condition})


def _set_state(state_id: int, value: str) -> Node:
    config = {"action": "sendNotification", "deviceStateId": state_id, "newStateValue": value}
    return _node("action", f"set {value}", config)


def _node(kind: str, name: str, config: Mapping[str, Any]) -> Node:
    node = Node(type=kind, name=name)
    node.config.update(config)
    return node
