"""gRPC, both sides: deadlines, who calls, errors in the table. Servicers and callers see none of it."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from aemos.v1 import identity_pb2, identity_pb2_grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from aemos_core import telemetry
from aemos_core.contract import Access, AccessValue, Method, methods
from aemos_core.errors import AemosError, cut, from_grpc, internal, malformed, to_grpc_trailers, unavailable
from aemos_core.identity import (
    ANYBODY,
    SERVICE,
    Caller,
    TokenVerifier,
    Trust,
    caller,
    check_access,
    is_service_secret,
    set_caller,
)
from aemos_core.process import PortInUse, authority
from aemos_core.settings import ServiceSettings

log = logging.getLogger("aemos.rpc")

Context = grpc.aio.ServicerContext[Any, Any]
SERVER_SECONDS = 10.0
"""Deadline of a call whose caller gave none."""
CLIENT_SECONDS = 5.0
_TRUST_SECONDS = 1.0
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
_AUTHORIZATION = "authorization"
_TRACE = "aemos-trace-bin"
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
]


class _ServerEdge(grpc.aio.ServerInterceptor):
    """Every call goes through here: caller, access, deadline, error."""

    def __init__(self, secret: str, verifier: TokenVerifier) -> None:
        self._secret = secret
        self._verifier = verifier

    async def intercept_service(
        self,
        continuation: Any,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        method = methods().get(handler_call_details.method)
        if handler is None or method is None:
            return handler  # unknown, or one of the standard services: health and reflection
        # Bytes are parsed behind the guard: grpc itself would answer UNKNOWN, with the parser's own words.
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                self._guarded_stream(handler, method), None, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(self._guarded(handler, method), None, handler.response_serializer)

    def _guarded(self, handler: Any, method: Method) -> Any:
        async def guarded(received: bytes, context: Any) -> Any:
            async with _errors_as_status(context, method.path):
                await self._enter(context, method.access)
                async with asyncio.timeout(_seconds_left(context)):
                    return await handler.unary_unary(handler.request_deserializer(received), context)

        return guarded

    def _guarded_stream(self, handler: Any, method: Method) -> Any:
        async def guarded(received: bytes, context: Any) -> AsyncIterator[Any]:
            async with _errors_as_status(context, method.path):
                await self._enter(context, method.access)
                async for answer in handler.unary_stream(handler.request_deserializer(received), context):
                    yield answer

        return guarded

    async def _enter(self, context: Any, access: AccessValue) -> None:
        metadata = dict(context.invocation_metadata() or ())
        who = await self._caller(str(metadata.get(_AUTHORIZATION, "")))
        check_access(who, access)
        set_caller(who)

    async def _caller(self, authorization: str) -> Caller:
        scheme, _, credentials = authorization.partition(" ")
        if scheme == "Service" and is_service_secret(credentials, self._secret):
            return SERVICE
        if scheme.lower() == "bearer":
            return await self._verifier.verify(credentials)
        return ANYBODY


@asynccontextmanager
async def _errors_as_status(context: Any, path: str) -> AsyncIterator[None]:
    """Whatever is raised in the block ends the call with its place in the error table."""
    try:
        yield
    except AemosError as error:
        await _abort(context, error)
    except DecodeError:
        await _abort(context, malformed("the request is not a message of this method"))
    except TimeoutError:
        await _abort(context, unavailable("it took too long"))
    except grpc.aio.AioRpcError as error:
        await _abort(context, from_grpc(error))
    except grpc.aio.AbortError:
        raise
    except Exception:
        log.exception("%s failed", path)
        await _abort(context, internal())


def _seconds_left(context: Context) -> float:
    left = context.time_remaining()
    return SERVER_SECONDS if left is None else min(left, 60.0)


async def _abort(context: Context, error: AemosError) -> None:
    await context.abort(error.kind.answers.grpc, cut(error.detail), to_grpc_trailers(error))


def carried_trace(context: Context) -> bytes:
    """The trace context that another service sent with a call; empty when it sent none, or is no service."""
    if caller() is not SERVICE:
        return telemetry.NO_CONTEXT
    value = dict(context.invocation_metadata() or ()).get(_TRACE, b"")
    return value if isinstance(value, bytes) and len(value) == 24 else telemetry.NO_CONTEXT


class GrpcServer:
    """A component: the gRPC listener of a service, with health and reflection."""

    def __init__(self, server: grpc.aio.Server, health_servicer: Any) -> None:
        self._server = server
        self._health = health_servicer

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until told to stop, then finishes the calls it has."""
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        await stop.wait()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace=20)


@asynccontextmanager
async def grpc_server(
    settings: ServiceSettings, name: str, verifier: TokenVerifier, servicers: Sequence[object]
) -> AsyncIterator[GrpcServer]:
    """Serves instances of generated servicers on the gRPC port of the service so named; PortInUse."""
    port: int = getattr(settings, f"{name}_grpc_port")
    server = grpc.aio.server(interceptors=[_ServerEdge(settings.service_secret, verifier)], options=_OPTIONS)
    names = [_register(server, servicer) for servicer in servicers]
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME, health.SERVICE_NAME], server)
    try:
        server.add_insecure_port(authority(settings.bind, port))
    except RuntimeError:
        raise PortInUse(port, f"AEMOS_{name.upper()}_GRPC_PORT") from None
    await server.start()
    try:
        yield GrpcServer(server, health_servicer)
    finally:
        await server.stop(grace=0)


def _register(server: grpc.aio.Server, servicer: object) -> str:
    """Adds a servicer by the generated function beside its base class; returns the service's full name."""
    base = next(cls for cls in type(servicer).__mro__ if cls.__module__.startswith("aemos.v1."))
    getattr(sys.modules[base.__module__], f"add_{base.__name__}_to_server")(servicer, server)
    return f"aemos.v1.{base.__name__.removesuffix('Servicer')}"


class _ClientEdge(grpc.aio.UnaryUnaryClientInterceptor):
    """Every call out: a deadline, the right credentials for what the method needs, the trace, errors in the table."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        metadata = list(details.metadata or ())
        path = details.method.decode() if isinstance(details.method, bytes) else details.method
        if (authorization := self._authorization(path)) is not None:
            metadata.append((_AUTHORIZATION, authorization))
        if trace := telemetry.current():
            metadata.append((_TRACE, trace))
        timed = grpc.aio.ClientCallDetails(
            details.method,
            details.timeout or CLIENT_SECONDS,
            grpc.aio.Metadata(*metadata),
            None,
            details.wait_for_ready,
        )
        try:
            return await (await continuation(timed, request))
        except grpc.aio.AioRpcError as error:
            raise from_grpc(error) from None

    def _authorization(self, path: str) -> str | None:
        method = methods().get(path)
        if method is None:
            return None  # a standard service, such as health
        if method.access == Access.ACCESS_SERVICE:
            return f"Service {self._secret}"
        return f"Bearer {caller().token}" if caller().token else None


@asynccontextmanager
async def open_channel(target: str, secret: str) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to another service: calls end within 5 s unless they say otherwise, and raise AemosError."""
    edge: Any = _ClientEdge(secret)
    async with grpc.aio.insecure_channel(target, options=_OPTIONS, interceptors=[edge]) as channel:
        yield channel


def remote_verifier(channel: grpc.aio.Channel) -> TokenVerifier:
    """Verifies user tokens with the keys that ingest hands out, unless their session has ended."""
    stub = identity_pb2_grpc.IdentityServiceStub(channel)

    async def fetch() -> Trust:
        answer = await stub.GetSigningKeys(identity_pb2.GetSigningKeysRequest(), timeout=_TRUST_SECONDS)
        keys = {key.kid: Ed25519PublicKey.from_public_bytes(key.public_key) for key in answer.keys}
        return Trust(keys, frozenset(answer.ended_sessions))

    return TokenVerifier(fetch)
