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
from aemos_core.errors import AemosError, Kind
from aemos_core.identity import Caller, set_caller
from aemos_core.rpc import open_channel

from aemos_client.settings_page import SERVICES

EMAIL = "demo@aemos.example"
_AT_ONCE = 8
_SCHEDULES = (
    ("Hourly Temperature Check", "0 0 * * * *"),
    ("Daily Report Generator", "0 0 0 * * *"),
    ("Every 5 Min Sensor Scan", "0 */5 * * * *"),
)


async def seed(var: Path, settings: Any) -> str:
    """Seeds once, writes `demo.json`, and returns the banner; `settings`: of everything that was started."""
    path = var / "seeded.json"
    if not path.exists():
        async with AsyncExitStack() as stack:
            seeded = await _Seeder(stack, settings).seed(settings.demo_devices)
        _write(path, seeded)
    demo = _addresses(settings) | json.loads(path.read_text(encoding="utf-8"))
    _write(var / "demo.json", demo)
    return _banner(demo, var)


def _write(path: Path, content: Any) -> None:
    """Whole or not at all, and for its owner only: it holds tokens."""
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(fresh, path)


def _addresses(settings: Any) -> dict[str, Any]:
    return {
        "httpUrl": f"http://127.0.0.1:{settings.http_port}",
        "socketIoUrl": f"http://127.0.0.1:{settings.socketio_port}",
        "mqtt": {"host": "127.0.0.1", "port": settings.mqtt_port},
        "coapUrl": f"coap://127.0.0.1:{settings.coap_port}",
        "grpc": {name: f"127.0.0.1:{getattr(settings, f'{name}_grpc_port')}" for name in SERVICES},
    }


def _banner(demo: Mapping[str, Any], var: Path) -> str:
    login, first = demo["login"], ""
    for one in demo["devices"][:1]:
        body = '{"value": "25.5", "variableName": "temperature"}'
        to = f"{demo['httpUrl']}/api/v1/datastreams/token -H 'Authorization: Bearer {one['token']}'"
        first = f" A first reading, which raises an alert:\n  curl -X POST {to} -d '{body}'"
    return f"""
AEMOS is up. Ctrl-C stops it.
  HTTP       {demo["httpUrl"]}   (REST under /api/v1, documentation under /docs)
  Socket.IO  {demo["socketIoUrl"]}
  MQTT       {demo["mqtt"]["host"]}:{demo["mqtt"]["port"]}
  CoAP       {demo["coapUrl"]}
  login      {login["email"]} / {login["password"]}
Everything else is in {var / "demo.json"}.{first}
"""


class _Seeder:
    """Calls what it needs by its name in the contract, as the demo's administrator once there is one."""

    def __init__(self, stack: AsyncExitStack, settings: Any) -> None:
        self._stack = stack
        self._settings = settings
        self._channels: dict[str, Any] = {}
        self._made: list[dict[str, Any]] = []

    async def _call(self, owner: str, name: str, /, **fields: Any) -> Any:
        method = methods()[f"/aemos.v1.{name}"]
        serialize, parse = method.request.SerializeToString, method.response.FromString
        return await self._channels[owner].unary_unary(method.path, serialize, parse)(method.request(**fields))

    async def seed(self, count: int) -> dict[str, Any]:
        """The organization with its devices and chains."""
        targets = {"ingest": self._settings.ingest_target, "rules": self._settings.rules_target}
        for owner, target in targets.items():
            channel = open_channel(target, self._settings.service_secret)
            self._channels[owner] = await self._stack.enter_async_context(channel)
        login = await self._administrator()
        tokens = await self._call("ingest", "IdentityService/Login", **login)
        set_caller(Caller(0, 0, "admin", tokens.access_token))
        at_once = asyncio.Semaphore(_AT_ONCE)
        devices = await asyncio.gather(*(self._device(number, at_once) for number in range(1, count + 1)))
        for name, cron in _SCHEDULES if devices else ():
            await self._chain(name, _set_state(devices[0]["stateId"], "normal"), cron_expression=cron, timezone="UTC")
        for one in devices:
            del one["stateId"]
        return {"login": login, "devices": devices, "ruleChains": sorted(self._made, key=lambda made: made["id"])}

    async def _administrator(self) -> dict[str, str]:
        """The login of a new organization; of another name when a start was interrupted that had begun to seed."""
        login = {"email": EMAIL, "password": secrets.token_urlsafe(9)}
        try:
            await self._create_organization(login)
        except AemosError as error:
            if error.kind is not Kind.EXISTS:
                raise
            login["email"] = f"demo-{secrets.token_hex(4)}@aemos.example"
            await self._create_organization(login)
        return login

    async def _create_organization(self, login: Mapping[str, str]) -> None:
        admin = {"admin_email": login["email"], "admin_password": login["password"]}
        await self._call("ingest", "IdentityService/CreateOrganization", name="Demo", **admin)

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
