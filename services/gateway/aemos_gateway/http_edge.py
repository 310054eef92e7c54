"""HTTP: the hot ingest route as plain ASGI, everything else through FastAPI."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from urllib.parse import parse_qs

import grpc
from aemos.v1 import history_pb2_grpc
from aemos_core.errors import AemosError, internal, invalid, unauthenticated
from aemos_core.http_heads import Answer, Take
from aemos_core.identity import TokenVerifier
from aemos_core.names import READY_PROBE
from aemos_core.redis_link import RedisClient
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.exceptions import RedisError
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from aemos_gateway import export, http_body, openapi, problems, rest
from aemos_gateway.device_auth import Device, DeviceAuth
from aemos_gateway.json_codec import BOOLEANS
from aemos_gateway.readings import MAX_BATCH_BYTES, MAX_READING_BYTES, Receipt, in_batch
from aemos_gateway.service import Uplink

log = logging.getLogger("aemos.gateway")

INGEST_PATHS = {"/api/v1/datastreams/token": MAX_READING_BYTES, "/api/v1/datastreams/batch": MAX_BATCH_BYTES}
"""The routes of readings, and how many bytes a body may have, inflated too."""
PROTOCOL = "http"
READY_SECONDS = 1.0
_JSON_HEADER = (b"content-type", b"application/json")
_ANY_ORIGIN = (b"access-control-allow-origin", b"*")
"""Who calls is in the token, never in a cookie: a foreign page has nothing to ride on."""


class IngestRoute:
    """The two routes of readings without a framework, and without a task for what came as a whole from a known device.

    A request costs 45 us instead of 200 without the framework, and a quarter less again without the task.
    """

    def __init__(self, auth: DeviceAuth, uplink: Uplink, rest_of_api: FastAPI) -> None:
        self._auth = auth
        self._uplink = uplink
        self._rest = rest_of_api
        # POST is taken before it gets there; any other method hears that there is POST.
        rest_of_api.router.routes += [Route(path, self, methods=["POST"]) for path in INGEST_PATHS]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in INGEST_PATHS:
            await self._rest(scope, receive, send)
            return
        try:
            token, length, encoding = _headers(scope["headers"])
            device = self._auth.known(token) or await self._auth.resolve(token)
            receipt = await self._take(device, scope, receive, length, encoding)
            await _answer(send, 201, [_JSON_HEADER, _ANY_ORIGIN], receipt.answer())
        except AemosError as error:
            await _answer(send, *_problem(error))

    def at_once(self, scope: Scope) -> Take | None:
        """What takes whole requests with this head; None when something is wrong before the body is, or is special."""
        most = INGEST_PATHS.get(scope["path"])
        if most is None or scope["method"] != "POST" or scope["query_string"]:
            return None
        try:
            token, _, encoding = _headers(scope["headers"])
        except AemosError:
            return None
        return None if encoding else partial(self.take, token, most)

    def take(self, token: bytes, most: int, body: bytes, answer: Answer) -> bool:
        """A whole body of `most` bytes at most; False when something must be waited for."""
        device = self._auth.known(token)
        if device is None or len(body) > most:
            return False
        done = partial(self._done, device, body, answer)
        try:
            self._uplink.put(device, body, PROTOCOL, done)
        except Exception as error:
            if not isinstance(error, AemosError):
                log.error("a reading over HTTP failed", exc_info=error)
            done(error)
        return True

    def _done(self, device: Device, body: bytes, answer: Answer, outcome: Receipt | BaseException) -> None:
        if isinstance(outcome, Receipt):
            answer(201, (_JSON_HEADER, _ANY_ORIGIN), outcome.answer())
            return
        error = outcome if isinstance(outcome, AemosError) else internal()
        self._uplink.rejections.record(device, PROTOCOL, body, error)
        answer(*_problem(error))

    async def _take(self, device: Device, scope: Scope, receive: Receive, length: int, encoding: bytes) -> Receipt:
        body, most = b"", INGEST_PATHS[scope["path"]]
        try:
            if length > most:
                raise http_body.too_large(most)
            body = await http_body.read(receive, most)
            if encoding:
                body = http_body.unpack(body, encoding, most)
            is_partial = _is_partial(scope["query_string"])
            receipt = await self._uplink.write(device, body, PROTOCOL, is_partial=is_partial)
        except AemosError as error:
            self._uplink.rejections.record(device, PROTOCOL, body, error)
            raise
        if receipt.refused:
            self._uplink.rejections.record(device, PROTOCOL, body, in_batch(receipt.refused, "the rest"))
        return receipt


def _headers(headers: list[tuple[bytes, bytes]]) -> tuple[bytes, int, bytes]:
    """The device token, the announced length (0: none), and the Content-Encoding."""
    token, length, encoding = b"", 0, b""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            token = value[7:].strip()
        elif name == b"content-length":
            length = int(value)
        elif name == b"content-encoding":
            encoding = value
    if not token:
        raise unauthenticated("a device token is required: Authorization: Bearer <token>")
    return token, length, encoding


def _is_partial(query: bytes) -> bool:
    """What the query says of `partial`; INVALID when that is neither true nor false."""
    said = parse_qs(query.decode("latin-1")).get("partial") if query else None
    if not said:
        return False
    is_partial = BOOLEANS.get(said[-1].lower())
    if is_partial is None:
        raise invalid("partial", "must be true or false")
    return is_partial


def _problem(error: AemosError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    status, headers, body = problems.problem(error)
    return status, [*((k.encode(), v.encode()) for k, v in headers.items()), _ANY_ORIGIN], body


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def make_app(
    channels: Mapping[str, grpc.aio.Channel], verifier: TokenVerifier, ingest: grpc.aio.Channel, redis: RedisClient
) -> FastAPI:
    """Health, documentation, and a route for each method of the contract."""
    # A redirect to the path without its last slash would name the host and the scheme that a proxy speaks to.
    app = FastAPIOffline(title="AEMOS", redoc_url=None, redirect_slashes=False)
    app.openapi = openapi.document  # type: ignore[method-assign]
    app.add_middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"], expose_headers=["*"]
    )
    problems.install(app)
    health = health_pb2_grpc.HealthStub(ingest)

    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def readyz(_: Request) -> Response:
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=READY_SECONDS)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            return PlainTextResponse("ingest is not serving", 503)
        # 200 all the same: readings are stored without Redis, and no load balancer should take this process away.
        return PlainTextResponse("ok" if await _takes_writes(redis) else "degraded: redis takes no writes")

    exported = export.Export(history_pb2_grpc.HistoryServiceStub(ingest), verifier)
    app.add_route("/livez", livez)
    app.add_route("/readyz", readyz)
    app.add_route(export.PATH, exported.answer)
    rest.add_routes(app, channels, verifier)
    return app


async def _takes_writes(redis: RedisClient) -> bool:
    with suppress(RedisError, OSError):
        async with asyncio.timeout(READY_SECONDS):
            with suppress(RedisError, OSError):  # the connection may have died with the Redis before
                return bool(await redis.set(READY_PROBE, b"", ex=60))
            return bool(await redis.set(READY_PROBE, b"", ex=60))
    return False
