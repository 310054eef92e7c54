"""The routes of readings: what is refused is also recorded, unless it is nobody's."""

from __future__ import annotations

from typing import Any

import pytest
from aemos_core.errors import AemosError, Kind, invalid
from aemos_gateway.http_edge import IngestRoute

from tests.support.fake_coap import OURS, TOKEN, FakeAuth, FakeUplink

GOOD = b'{"variableName": "temperature", "value": 1}'


async def post(uplink: FakeUplink, body: bytes, *headers: tuple[bytes, bytes], token: bytes = TOKEN) -> int:
    """The status of a POST."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    route = IngestRoute(FakeAuth(), uplink, None)  # type: ignore[arg-type]
    headers = ((b"authorization", b"Bearer " + token), *headers)
    scope = {"type": "http", "method": "POST", "path": "/api/v1/datastreams/token", "query_string": b""}
    await route({**scope, "headers": list(headers)}, receive, send)
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (b"{", [], 400, "malformed"),
        (b"{}", [], 422, "invalid"),
        (b"no gzip", [(b"content-encoding", b"gzip")], 400, "malformed"),
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
