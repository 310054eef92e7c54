"""REST from the contract: one route for each method that declares one; nothing here knows a resource."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from http import HTTPStatus
from typing import Any

import grpc
import msgspec
from aemos_core.contract import Access, Method, methods
from aemos_core.errors import FieldError, invalid, malformed, refuse, unauthenticated
from aemos_core.identity import TokenVerifier, check_access, set_caller
from fastapi import FastAPI
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response

from aemos_gateway import http_body
from aemos_gateway.json_codec import from_json, from_parameters, to_json
from aemos_gateway.readings import check_depth, check_text

MAX_BODY_BYTES = 1024 * 1024
_SHORT_BYTES = 8 * 1024
"""A longer body is read beside the loop: 1 MiB of small values takes a second."""
_MOST_MISTAKES = 100
"""So many are told: a body of 1 MiB can make hundreds of thousands."""
_JSON = "application/json"
_DOWNLOAD = {
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    "X-Content-Type-Options": "nosniff",
}
"""A page that a user's data made must do nothing on the API's origin."""
Endpoint = Callable[[Request], Awaitable[Response]]


def add_routes(app: FastAPI, channels: Mapping[str, grpc.aio.Channel], verifier: TokenVerifier) -> None:
    """Adds a route for each method with a REST mapping; `channels` are those of the services, by service name."""
    for method in methods().values():
        if method.route:
            endpoint = _endpoint(method, channels[method.service], verifier)
            app.add_route(method.route, endpoint, methods=[method.verb])


def _endpoint(method: Method, channel: grpc.aio.Channel, verifier: TokenVerifier) -> Endpoint:
    call = channel.unary_unary(
        method.path,
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )

    async def endpoint(request: Request) -> Response:
        if method.access != Access.ACCESS_PUBLIC:
            who = await verifier.verify(bearer(request.headers.get("authorization", "")))
            check_access(who, method.access)
            set_caller(who)
        message = await _message(request, method)
        return _response(method, await call(message))

    return endpoint


def bearer(authorization: str) -> str:
    """The token of an Authorization header (RFC 6750, 2.1)."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise unauthenticated()
    return token.strip()


async def _message(request: Request, method: Method) -> Message:
    message = method.request()
    parameters = {name: [value] for name, value in request.path_params.items()}
    if not method.has_body:
        parameters = query_of(request) | parameters
    values, errors = from_parameters(method.request.DESCRIPTOR, parameters)
    if method.has_body:
        body = await _body(request)
        if len(body) > _SHORT_BYTES:
            errors += await asyncio.to_thread(_fill, message, body)
        else:
            errors += _fill(message, body)
    refuse((errors + from_json(message, values))[:_MOST_MISTAKES])
    return message


def _fill(message: Message, body: bytes) -> list[FieldError]:
    return from_json(message, decode_body(body))


async def _body(request: Request) -> bytes:
    body = await http_body.read(request.receive, MAX_BODY_BYTES)
    return http_body.unpack(body, request.headers.get("content-encoding", "").encode(), MAX_BODY_BYTES)


def query_of(request: Request) -> dict[str, list[str]]:
    """Every value of each query parameter."""
    return {name: request.query_params.getlist(name) for name in request.query_params}


def decode_body(body: bytes) -> Any:
    """JSON values of a body; MALFORMED when it is none, INVALID when a number is larger than any that can be kept."""
    try:
        check_text(body)
        values = msgspec.json.decode(body)
    except UnicodeDecodeError:
        raise malformed("the body is not UTF-8") from None
    except msgspec.ValidationError:
        raise invalid("body", "has a number that is out of range") from None
    except (msgspec.DecodeError, RecursionError):
        raise malformed("the body is not JSON") from None
    if isinstance(values, (dict, list)):
        check_depth(values)
    return values


def _response(method: Method, answer: Message) -> Response:
    status = success(method)
    if status is HTTPStatus.NO_CONTENT:
        return Response(status_code=status)
    if isinstance(answer, HttpBody):
        return Response(answer.data, media_type=answer.content_type, headers=_DOWNLOAD)
    return Response(msgspec.json.encode(to_json(answer)), status, media_type=_JSON)


@cache
def success(method: Method) -> HTTPStatus:
    """What a method answers when it did what it does. A POST creates where the same route lists; others are actions."""
    if method.verb == "DELETE":
        return HTTPStatus.NO_CONTENT
    lists = any(other.verb == "GET" and other.route == method.route for other in methods().values())
    return HTTPStatus.CREATED if method.verb == "POST" and lists else HTTPStatus.OK
