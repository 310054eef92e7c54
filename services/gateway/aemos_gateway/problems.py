"""Errors as RFC 9457 problem details."""

from __future__ import annotations

import logging
from http import HTTPStatus

import msgspec
from aemos_core.errors import AemosError, Kind, internal
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

log = logging.getLogger("aemos.gateway")

MEDIA_TYPE = "application/problem+json"
_STATUS = {"request_timeout": 408, "unsupported_encoding": 415}
"""HTTP statuses that the error table has no row for, by reason."""


def body(error: AemosError, status: int, title: str) -> bytes:
    """The JSON of a problem."""
    problem = {"type": f"urn:aemos:error:{error.reason}", "title": title, "status": status, "detail": error.detail}
    return msgspec.json.encode({**problem, "reason": error.reason, "errors": error.errors})


def problem(error: AemosError, status: int = 0) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an error's answer."""
    status = status or _STATUS.get(error.reason) or error.kind.answers.http
    headers = {"content-type": MEDIA_TYPE}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.kind is Kind.UNAUTHENTICATED:
        headers["www-authenticate"] = 'Bearer realm="aemos"'
    return status, headers, body(error, status, HTTPStatus(status).phrase)


def response(error: AemosError, status: int = 0) -> Response:
    """The answer as Starlette has it."""
    code, headers, content = problem(error, status)
    return Response(content, code, headers)


def _allowed(app: FastAPI, scope: Scope) -> str:
    """The methods of every route of a path (RFC 9110, 15.5.6); Starlette names those of the first one."""
    fitting = (route for route in app.routes if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE)
    return ", ".join(sorted({method for route in fitting for method in route.methods or ()}))


def install(app: FastAPI) -> None:
    """Every error of the application answers as a problem."""

    @app.exception_handler(AemosError)
    async def _ours(_: Request, error: AemosError) -> Response:
        return response(error)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        kind = Kind.NOT_FOUND if error.status_code == HTTPStatus.NOT_FOUND else Kind.INVALID
        named = AemosError(kind, str(error.detail), reason=HTTPStatus(error.status_code).name.lower())
        answer = response(named, error.status_code)
        answer.headers.update(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            answer.headers["allow"] = _allowed(app, request.scope)
        return answer

    @app.exception_handler(Exception)
    async def _unforeseen(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return response(internal())
