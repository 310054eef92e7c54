"""The routes of readings: what is refused is also recorded, unless it is nobody's."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from aemos_core.contract import methods
from aemos_core.errors import AemosError, Kind, invalid
from aemos_core.identity import Caller
from aemos_gateway import http_body, http_edge, openapi
from aemos_gateway.http_edge import INGEST_PATHS, IngestRoute, make_app
from fastapi import FastAPI
from grpc_health.v1 import health_pb2
from httpx import ASGITransport, AsyncClient
from redis.exceptions import OutOfMemoryError

from tests.support.fake_coap import OURS, TOKEN, FakeAuth, FakeUplink

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
GOOD = b'{"variableName": "temperature", "value": 1}'


async def post(
    uplink: FakeUplink, body: bytes, *headers: tuple[bytes, bytes], token: bytes = TOKEN, query: bytes = b""
) -> int:
    """The status of a POST."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    route = IngestRoute(FakeAuth(), uplink, FastAPI())
    headers = ((b"authorization", b"Bearer " + token), *headers)
    scope = {"type": "http", "method": "POST", "path": "/api/v1/datastreams/token", "query_string": query}
    await route({**scope, "headers": list(headers)}, receive, send)
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (b"{", [], 400, "malformed"),
        (b"{}", [], 422, "invalid"),
        (b"no gzip", [(b"content-encoding", b"gzip")], 400, "malformed"),
        (b"brotli", [(b"content-encoding", b"br")], 415, "unsupported_encoding"),
        (b"", [(b"content-length", b"70000")], 413, "too_large"),
    ],
)
async def test_what_is_refused_is_recorded(
    body: bytes, headers: list[tuple[bytes, bytes]], status: int, reason: str
) -> None:
    """Whatever is wrong with it, before and behind the decoder."""
    uplink = FakeUplink()
    assert await post(uplink, body, *headers) == status
    [refused] = uplink.refused.all
    assert (refused.device_uuid, refused.protocol, refused.reason) == (OURS.device_uuid, "http", reason)
    assert refused.payload == body


@pytest.mark.parametrize("refusal", [invalid("variableName", "none", "unknown_variable"), AemosError(Kind.BUSY, "")])
async def test_what_ingest_or_a_limit_refuses_is_recorded(refusal: AemosError) -> None:
    """With the reason that the device was given."""
    uplink = FakeUplink()
    uplink.refusal = refusal
    assert await post(uplink, GOOD) == refusal.kind.answers.http
    assert [refused.reason for refused in uplink.refused.all] == [refusal.reason]


async def test_what_is_stored_or_nobodys_is_not_recorded() -> None:
    """There is no device to tell of it."""
    uplink = FakeUplink()
    assert await post(uplink, GOOD) == 201
    assert await post(uplink, b"{}", token=b"unknown") == 401
    assert uplink.refused.all == []


@pytest.mark.parametrize(
    ("query", "status", "is_partial"),
    [
        (b"partial=true", 201, True),
        (b"partial=True", 201, True),
        (b"a=1&partial=true", 201, True),
        (b"partial=false", 201, False),
        (b"a=1", 201, False),
        (b"partial=yes", 422, False),
        (b"partial=%FF", 422, False),
    ],
)
async def test_partial_is_true_or_false(query: bytes, status: int, is_partial: bool) -> None:
    """Whatever else the query says; who means another thing is told so instead of being taken for false."""
    uplink = FakeUplink()
    assert await post(uplink, GOOD, query=query) == status
    assert uplink.partial == is_partial


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/v1/rule-chains", "GET, HEAD, POST"),
        ("/api/v1/rule-chains/7", "DELETE, GET, HEAD, PATCH"),
        ("/api/v1/rule-chains/dry-run", "DELETE, GET, HEAD, PATCH, POST"),
        *((path, "POST") for path in INGEST_PATHS),
    ],
)
async def test_405_lists_every_method_of_the_path(path: str, allowed: str) -> None:
    """Also of the routes of readings, and of a path that two routes fit."""
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        app = make_app({method.service: channel for method in methods().values()}, None, channel, None)  # type: ignore[arg-type]
        route = IngestRoute(FakeAuth(), FakeUplink(), app)
        async with AsyncClient(transport=ASGITransport(route), base_url="http://gateway") as client:  # type: ignore[arg-type]
            answer = await client.put(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


class Admin:
    """Takes every token for an administrator's."""

    async def verify(self, token: str) -> Caller:
        return Caller(1, 1, "admin", token)


async def test_while_a_large_body_is_read_the_others_have_their_turn() -> None:
    """Many small values take a second to read; the readings of other requests do not wait for it."""
    channel: Any = FakeChannel(SERVING)
    app = make_app({m.service: channel for m in methods().values()}, Admin(), channel, None)  # type: ignore[arg-type]
    chain = {"name": "large", "nodes": [{"type": "filter", "name": "n", "config": {"a": [1] * 50_000}}]}
    turns = 0
    async with AsyncClient(transport=ASGITransport(app), base_url="http://gateway") as client:
        headers = {"authorization": "Bearer any"}
        posting = asyncio.create_task(client.post("/api/v1/rule-chains", json=chain, headers=headers))
        while not posting.done():
            turns += 1
            await asyncio.sleep(0)
    assert (await posting).status_code == 201
    assert turns > 100


class FakeChannel:
    """Every call is answered by the health of its service."""

    def __init__(self, status: int) -> None:
        self.status = status

    def unary_unary(self, *_: Any, **__: Any) -> Any:
        async def call(*_: Any, **__: Any) -> health_pb2.HealthCheckResponse:
            return health_pb2.HealthCheckResponse(status=self.status)

        return call

    unary_stream = unary_unary


class FakeRedis:
    """Takes writes, or refuses them, so often at the most."""

    def __init__(self, failure: Exception | None, times: int = 1_000) -> None:
        self.failure = failure
        self.times = times

    async def set(self, *_: Any, **__: Any) -> bool:
        self.times -= 1
        if self.failure and self.times >= 0:
            raise self.failure
        return True


class SilentRedis(FakeRedis):
    """Does not answer; `asked` counts."""

    def __init__(self) -> None:
        super().__init__(None)
        self.asked = 0

    async def set(self, *_: Any, **__: Any) -> bool:
        self.asked += 1
        await asyncio.Event().wait()
        return True


def app_client(redis: FakeRedis, ingest: int = SERVING) -> AsyncClient:
    """A client of the application, whose owners answer with their health only."""
    channel: Any = FakeChannel(ingest)
    app = make_app({m.service: channel for m in methods().values()}, None, channel, redis)  # type: ignore[arg-type]
    route: Any = IngestRoute(FakeAuth(), FakeUplink(), app)
    return AsyncClient(transport=ASGITransport(route), base_url="http://gateway")


async def ready(redis: FakeRedis, ingest: int = SERVING) -> tuple[int, str]:
    """What /readyz says."""
    async with app_client(redis, ingest) as client:
        answer = await client.get("/readyz")
    return answer.status_code, answer.text


async def test_documentation_needs_nobody_else() -> None:
    """The page has its script and its style from here, so that it shows where there is no internet."""
    async with app_client(FakeRedis(None)) as client:
        page = (await client.get("/docs")).text
        needed = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert len(needed) == 3
        assert {(await client.get(url)).status_code for url in needed if url.startswith("/")} == {200}
        assert all(url.startswith("/") for url in needed)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/api/v1/datastreams/token", 201),
        ("POST", "/api/v1/datastreams/batch", 400),
        ("GET", "/livez", 200),
        ("GET", "/nowhere", 404),
    ],
)
async def test_a_page_of_any_origin_may_ask_and_read_the_answer(method: str, path: str, status: int) -> None:
    """As it may connect to Socket.IO: who it is is in the token, never in a cookie."""
    origin = {"Origin": "https://dashboard.example"}
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "authorization,content-type"}
    async with app_client(FakeRedis(None)) as client:
        allowed = await client.options(path, headers=origin | asked)
        sent = origin | ({"Authorization": f"Bearer {TOKEN.decode()}"} if method == "POST" else {})
        answer = await client.request(method, path, headers=sent, content=GOOD if path.endswith("token") else b"")
    assert allowed.status_code == 200
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    assert method in allowed.headers["access-control-allow-methods"]
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, "*")


async def test_head_says_what_get_would() -> None:
    """Load balancers ask for health so."""
    async with app_client(FakeRedis(None)) as client:
        assert [(await client.head(path)).status_code for path in ("/livez", "/readyz")] == [200, 200]


async def test_a_last_slash_leads_nowhere() -> None:
    """A redirect would name a host that the client made up, and send a token over HTTP that came over HTTPS."""
    async with app_client(FakeRedis(None)) as client:
        assert (await client.get("/api/v1/devices/")).status_code == 404


async def test_a_body_of_rest_comes_in_time_and_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of a reading: 408, 415, and gzip is taken out."""
    monkeypatch.setattr(http_body, "BODY_SECONDS", 0.05)

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async def login(body: Any, encoding: str) -> httpx.Response:
        return await client.post("/api/v1/auth/login", content=body, headers={"Content-Encoding": encoding})

    async with app_client(FakeRedis(None)) as client:
        assert (await login(never(), "identity")).status_code == 408
        assert (await login(b"{}", "br")).status_code == 415
        assert (await login(gzip.compress(b'{"colour": 1}'), "gzip")).json()["errors"] == [
            {"loc": "colour", "message": "is not a field"}
        ]
        many = await login(b"{%b}" % b",".join(b'"%d": 1' % n for n in range(50_000)), "identity")
        assert (many.status_code, len(many.json()["errors"]) <= 100) == (422, True)


@pytest.mark.parametrize(
    ("ingest", "redis", "status", "says"),
    [
        (SERVING, None, 200, "ok"),
        (SERVING, ConnectionError("refused"), 200, "degraded: redis takes no writes"),
        (SERVING, TimeoutError(), 200, "degraded: redis takes no writes"),
        (SERVING, OutOfMemoryError("maxmemory"), 200, "degraded: redis takes no writes"),
        (NOT_SERVING, None, 503, "ingest is not serving"),
        (NOT_SERVING, ConnectionError("refused"), 503, "ingest is not serving"),
    ],
)
async def test_readiness_says_what_is_wrong(ingest: int, redis: Exception | None, status: int, says: str) -> None:
    """Row 33: without Redis readings are taken, so the process is ready, and says that it is degraded."""
    assert await ready(FakeRedis(redis), ingest) == (status, says)


async def test_one_dead_connection_to_redis_is_not_redis() -> None:
    """The first command after Redis came back may meet a connection that died with it."""
    assert await ready(FakeRedis(ConnectionError("closed"), times=1)) == (200, "ok")


async def test_a_redis_that_hangs_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes gives the whole answer 2 s, and would take the process out of service after them."""
    monkeypatch.setattr(http_edge, "READY_SECONDS", 0.05)
    redis = SilentRedis()
    assert await ready(redis) == (200, "degraded: redis takes no writes")
    assert redis.asked == 1


def test_only_what_creates_answers_201() -> None:
    """The page says so of each POST, and the routes answer what it says."""
    posts = [item["post"] for item in openapi.document()["paths"].values() if "post" in item]
    creations = {post["operationId"] for post in posts if "201" in post["responses"]}
    assert {name for name in creations if not name.startswith("Create")} == {
        "PublishNotification",
        "SendReading",
        "SendReadings",
    }
    actions = {post["operationId"] for post in posts if "200" in post["responses"]}
    assert {"AcknowledgeAlarm", "DryRunChain", "PauseSchedule", "RotateDeviceToken", "RunScheduleNow"} < actions
    assert len(creations | actions) == len(posts)
