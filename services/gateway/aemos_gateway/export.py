"""`GET /api/v1/datastreams/export`: readings as NDJSON or CSV, page after page in flat memory."""

from __future__ import annotations

import asyncio
import csv
import io
import logging
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import NamedTuple

import msgspec
from aemos.v1 import data_stream_pb2 as pb
from aemos.v1 import history_pb2, history_pb2_grpc
from aemos_core.contract import Access
from aemos_core.errors import AemosError, FieldError, Kind, invalid, refuse
from aemos_core.identity import TokenVerifier, check_access
from aemos_core.times import rfc3339
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Send

from aemos_gateway.json_codec import from_json, from_parameters
from aemos_gateway.rest import bearer, query_of

log = logging.getLogger("aemos.gateway")

PATH = "/api/v1/datastreams/export"
_PAGE = 500
_PAGE_SECONDS = 10.0
_TAKE_SECONDS = 60.0
"""How long a client may leave a chunk unread."""
_MOST_AT_ONCE = 8
_NOT_HERE = ("pageSize", "pageToken", "aggregate", "interval", "timezone")
_COLUMNS = ("recievedAt", "sensorUuid", "variableName", "value", "id", "telemetryDataId")


def _row(reading: pb.Reading) -> tuple[object, ...]:
    at = rfc3339(reading.recieved_at.ToMilliseconds())
    return at, reading.sensor_uuid, reading.variable_name, reading.value, reading.id, reading.telemetry_data_id


def _ndjson(readings: Iterable[pb.Reading]) -> bytes:
    return b"".join(msgspec.json.encode(dict(zip(_COLUMNS, _row(r), strict=True))) + b"\n" for r in readings)


def _csv(readings: Iterable[pb.Reading]) -> bytes:
    """RFC 4180: CRLF, and quotation marks where a value needs them."""
    text = io.StringIO()
    csv.writer(text).writerows(map(_row, readings))
    return text.getvalue().encode()


class _Format(NamedTuple):
    media_type: str
    head: bytes
    encode: Callable[[Iterable[pb.Reading]], bytes]


_FORMATS = {
    "ndjson": _Format("application/x-ndjson", b"", _ndjson),
    "csv": _Format("text/csv; charset=utf-8; header=present", ",".join(_COLUMNS).encode() + b"\r\n", _csv),
}


class Export:
    """The route. At most 8 exports at once; another one is BUSY."""

    def __init__(self, history: history_pb2_grpc.HistoryServiceAsyncStub, verifier: TokenVerifier) -> None:
        self._history = history
        self._verifier = verifier
        self.under_way = 0

    async def answer(self, request: Request) -> Response:
        """Errors of the request are answered as such: the first page is there before the first byte is sent."""
        who = await self._verifier.verify(bearer(request.headers.get("authorization", "")))
        check_access(who, Access.ACCESS_VIEWER)
        if self.under_way >= _MOST_AT_ONCE:
            raise AemosError(Kind.BUSY, f"{_MOST_AT_ONCE} exports are under way", reason="too_many_exports")
        name, query = _asked(request)
        form = _FORMATS[name]
        # As a service, for the user's token would expire on the way.
        ask = history_pb2.QueryHistoryRequest(organization_id=who.organization_id, query=query)
        pages = self._pages(form, ask)
        first = await anext(pages)
        if request.method == "HEAD":
            await pages.aclose()
        chunks = _joined(first, pages)
        headers = {"content-disposition": f'attachment; filename="readings.{name}"', "vary": "accept-encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
            chunks = _gzip(chunks)
        return _Streamed(chunks, headers=headers, media_type=form.media_type)

    async def _pages(self, form: _Format, ask: history_pb2.QueryHistoryRequest) -> AsyncGenerator[bytes, None]:
        head, more = form.head, True
        self.under_way += 1
        try:
            while more:
                page = await self._history.QueryHistory(ask, timeout=_PAGE_SECONDS)
                yield head + form.encode(page.readings)
                head, more = b"", bool(page.next_page_token)
                ask.query.page_token = page.next_page_token
        finally:
            self.under_way -= 1


def _asked(request: Request) -> tuple[str, pb.QueryReadingsRequest]:
    parameters = query_of(request)
    name = parameters.pop("format", ["ndjson"])[-1]
    if name not in _FORMATS:
        raise invalid("format", f"must be one of {', '.join(_FORMATS)}")
    query = pb.QueryReadingsRequest(page_size=_PAGE)
    values, errors = from_parameters(query.DESCRIPTOR, parameters)
    errors += [FieldError(name, "is not a parameter") for name in _NOT_HERE if name in values]
    refuse(errors + from_json(query, values))
    if not query.HasField("to"):  # or it would never catch up with what is still coming in
        query.to.GetCurrentTime()
    return name, query


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


async def _gzip(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """RFC 1952. Fast rather than small: the loop serves devices too."""
    packer = zlib.compressobj(level=1, wbits=31)
    async for chunk in chunks:
        yield packer.compress(chunk)
    yield packer.flush()


class _Streamed(StreamingResponse):
    """What cannot go on ends without the last chunk, and the server closes the connection (RFC 9112, 8)."""

    async def stream_response(self, send: Send) -> None:
        """Sends chunk by chunk, as fast as the client takes them."""

        async def patient(message: Message) -> None:
            async with asyncio.timeout(_TAKE_SECONDS):
                await send(message)

        try:
            await super().stream_response(patient)
        except (AemosError, TimeoutError) as error:
            log.warning("an export was cut short: %s", getattr(error, "detail", "nobody took it"))
