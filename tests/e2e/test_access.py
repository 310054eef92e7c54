"""Who may call what, and whose objects are whose: every RPC of the contract, over gRPC and REST.

The tables are built from the contract, so a new RPC is in them without a line here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
from aemos_core.contract import Access, Method, methods
from aemos_gateway.json_codec import to_json
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.support.stack import Stack, running

CALL_SECONDS = 10.0
OPEN_SECONDS = 1.0
OWN, STRANGER = 1, 2
LEVELS = {"viewer": Access.ACCESS_VIEWER, "operator": Access.ACCESS_OPERATOR, "admin": Access.ACCESS_ADMIN}
CALLERS = ("nobody", *LEVELS, "stranger", "service")
BY_REQUEST = {"Login", "RefreshLogin"}
"""What a caller shows stands in the request itself, and an empty one shows nothing."""
REFUSED = {"UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403}


@dataclass(frozen=True)
class Answer:
    """What a call came to, without what is different each time."""

    code: str
    detail: str = ""
    body: Any = None


class World:
    """A stack, everybody who may call it, and where each service listens."""

    def __init__(self, stack: Stack, channels: dict[str, grpc.Channel]) -> None:
        self.stack = stack
        self._channels = channels
        self._http = httpx.Client(base_url=stack.demo["httpUrl"], timeout=CALL_SECONDS)
        self._secret = (stack.var / "service-secret").read_text(encoding="ascii")

    def grpc(self, method: Method, caller: str, request: Message) -> Answer:
        """The answer over gRPC; a stream's is its first message, or OK when it stays open for a second."""
        streams = descriptor_pool.Default().FindMethodByName(f"{method.service}.{method.name}").server_streaming
        make = self._channels[method.service].unary_stream if streams else self._channels[method.service].unary_unary
        call = make(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        credentials = self._credentials(caller)
        metadata = [("authorization", credentials)] if credentials else []
        try:
            found = call(request, metadata=metadata, timeout=OPEN_SECONDS if streams else CALL_SECONDS)
            found = next(iter(found), None) if streams else found
            return Answer("OK", body=found and to_json(found))
        except grpc.RpcError as error:
            if streams and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return Answer("OK")
            return Answer(error.code().name, error.details() or "")

    def rest(self, method: Method, caller: str, request: Message) -> Answer:
        """The answer over REST; the code is the HTTP status."""
        values = {k: v for k, v in to_json(request).items() if v not in ("", 0, [], None)}
        snake = {field.name: field.json_name for field in method.request.DESCRIPTOR.fields}
        route = method.route
        for name in [part[1:-1] for part in route.split("/") if part.startswith("{")]:
            route = route.replace("{" + name + "}", str(values.pop(snake[name], 0)))
        credentials = self._credentials(caller)
        sent: dict[str, Any] = {"json": values} if method.has_body else {"params": values}
        headers = {"authorization": credentials} if credentials else {}
        answer = self._http.request(method.verb, route, headers=headers, **sent)
        body = answer.json() if answer.content and "json" in answer.headers.get("content-type", "") else None
        detail = body.get("detail", "") if answer.is_error and body else ""
        return Answer(str(answer.status_code), detail, None if answer.is_error else body)

    def _credentials(self, caller: str) -> str:
        """Authorization of a caller: a user's is of a new session, for each call, since one of them is Logout."""
        if caller in ("nobody", "service"):
            return f"Service {self._secret}" if caller == "service" else ""
        role, organization = ("admin", STRANGER) if caller == "stranger" else (caller, OWN)
        return f"Bearer {self.stack.token_of(role, organization)}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("var"), AEMOS_DEMO_DEVICES="2") as stack, ExitStack() as opened:
        channels = {}
        for target in stack.demo["grpc"].values():
            channel = opened.enter_context(grpc.insecure_channel(target))
            channels |= dict.fromkeys(ProtoReflectionDescriptorDatabase(channel).get_services(), channel)
        yield World(stack, channels)
        log = (stack.var / "log").read_text(encoding="utf-8", errors="replace")
        assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]


def refusal(method: Method, caller: str) -> str:
    """The code with which this caller is refused; empty when it may call."""
    if method.access == Access.ACCESS_PUBLIC or (caller, method.access) == ("service", Access.ACCESS_SERVICE):
        return ""
    if caller == "nobody":
        return "UNAUTHENTICATED"
    level = LEVELS["admin"] if caller == "stranger" else LEVELS.get(caller, Access.ACCESS_UNSPECIFIED)
    return "PERMISSION_DENIED" if level < method.access else ""


EVERY = [pytest.param(method, id=path.removeprefix("/aemos.v1.")) for path, method in methods().items()]
OFFERED = [param for param in EVERY if param.values[0].route]  # type: ignore[union-attr]


@pytest.mark.parametrize("method", EVERY)
def test_access_over_grpc(world: World, method: Method) -> None:
    """The owner refuses who may not call, before it looks at the request; nobody else is refused for who he is."""
    for caller in CALLERS:
        answer, expected = world.grpc(method, caller, method.request()), refusal(method, caller)
        if expected:
            assert answer.code == expected, caller
        elif method.name not in BY_REQUEST:
            assert answer.code not in REFUSED, caller
        assert answer.code not in ("UNIMPLEMENTED", "INTERNAL", "UNKNOWN"), caller


@pytest.mark.parametrize("method", OFFERED)
def test_access_over_rest(world: World, method: Method) -> None:
    """As over gRPC; the service secret is nobody here."""
    for caller in CALLERS:
        answer = world.rest(method, caller, method.request())
        expected = "UNAUTHENTICATED" if caller == "service" else refusal(method, caller)
        if expected:
            assert answer.code == str(REFUSED[expected]), caller
        elif method.name not in BY_REQUEST:
            assert answer.code not in ("401", "403", "405", "500"), caller


def naming(method: Method, demo: dict[str, Any] | None, others: str) -> Message | None:
    """A request that names the demo's objects, or such as nobody has; None when it cannot name any."""
    request, names = method.request(), 0
    device = demo["devices"][0] if demo else {"uuid": "nobodys", "sensorUuid": "nobodys"}
    texts = {"device": device["uuid"], "device_uuid": device["uuid"]}
    texts |= {"sensor": device["sensorUuid"], "sensor_uuid": device["sensorUuid"]}
    for field in method.request.DESCRIPTOR.fields:
        is_text = field.cpp_type == FieldDescriptor.CPPTYPE_STRING
        is_id = field.cpp_type == FieldDescriptor.CPPTYPE_INT64 and (field.name == "id" or field.name.endswith("_id"))
        if field.is_repeated or field.name.startswith("page_"):
            continue
        if is_id or (is_text and field.name in texts):
            setattr(request, field.name, (1 if demo else 2**40) if is_id else texts[field.name])
            names += 1
        elif is_text:
            setattr(request, field.name, others)
    return request if names else None


def named(others: str) -> list[tuple[Method, Message]]:
    users = [m for m in methods().values() if LEVELS["viewer"] <= m.access <= LEVELS["admin"]]
    return [(m, request) for m in users if (request := naming(m, None, others)) is not None]


NAMING = [pytest.param(m, id=f"{m.service.removeprefix('aemos.v1.')}/{m.name}") for m, _ in named("")]


@pytest.mark.parametrize("others", ["", "x"])
@pytest.mark.parametrize("method", NAMING)
def test_what_is_anothers_does_not_exist(world: World, method: Method, others: str) -> None:
    """Row 3: another organization's objects are answered as those that nobody has, and nothing becomes of it."""
    foreign, nobodys = naming(method, world.stack.demo, others), naming(method, None, others)
    assert foreign is not None
    assert nobodys is not None
    transports = [world.grpc, world.rest] if method.route else [world.grpc]
    for call in transports:
        answer = call(method, "stranger", foreign)
        assert answer == call(method, "stranger", nobodys)
        assert answer.code in ("OK", "200", "NOT_FOUND", "404", "INVALID_ARGUMENT", "422")
        if method.verb in ("DELETE", "GET") and method.route.endswith("}"):
            assert answer.code in ("NOT_FOUND", "404")


@pytest.mark.parametrize("name", ["GetDevice", "GetSensor", "GetTelemetryData", "GetDeviceState", "GetRuleChain"])
def test_their_owner_finds_them(world: World, name: str) -> None:
    """What strangers do not see is there, also after all that they tried."""
    (method,) = (m for m in methods().values() if m.name == name)
    request = naming(method, world.stack.demo, "")
    assert request is not None
    assert world.grpc(method, "viewer", request).code == "OK"
    assert world.rest(method, "viewer", request).code == "200"
