"""The database is away: nothing is acknowledged, every protocol says so, and it goes on without a restart."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import aiocoap
import httpx
import pytest

from tests.faults.installation import Installation
from tests.faults.load import Coap, Http, Mqtt, body
from tests.faults.nemesis import FAULTS
from tests.support.stack import Stack

ANSWER_SECONDS = 12.0
BACK_SECONDS = 20.0


@contextmanager
def read_only(it: Installation) -> Iterator[None]:
    """It has become a replica."""
    it.rows("SET GLOBAL read_only = 1")
    try:
        yield
    finally:
        it.rows("SET GLOBAL read_only = 0")


@contextmanager
def closed(it: Installation) -> Iterator[None]:
    """It takes no connections any more, and has dropped those it had."""
    it.rows("ALTER USER aemos@'127.0.0.1' ACCOUNT LOCK")
    for (number,) in it.rows("SELECT id FROM information_schema.processlist WHERE user = 'aemos'"):
        it.rows(f"KILL {number}")
    try:
        yield
    finally:
        it.rows("ALTER USER aemos@'127.0.0.1' ACCOUNT UNLOCK")


AWAY = {"read-only": read_only, "closed": closed, **{name: FAULTS[name] for name in FAULTS if "mariadb" in name}}


@pytest.mark.parametrize("fault", AWAY)
async def test_nothing_is_acknowledged_while_it_is_away(broken: Installation, fault: str) -> None:
    """503 with Retry-After, no PUBACK, 5.03 with Max-Age; all are well again within 20 s of its return."""
    stack = broken.stack
    http, mqtt, coap = stack.demo["devices"][-3:]
    devices = (Http(stack, http), Mqtt(stack, mqtt), Coap(stack, coap))
    for device in devices:
        assert await device.send(20.0)
    with AWAY[fault](broken):
        began = time.monotonic()
        answers = await asyncio.gather(_http_status(stack, http["token"]), _sent(devices[1]), _coap_code(stack, coap))
        assert answers == [(503, True), False, ("5.03", True)]
        assert time.monotonic() - began < ANSWER_SECONDS + 3
    deadline = time.monotonic() + BACK_SECONDS
    for device in devices:
        while not await _sent(device):
            assert time.monotonic() < deadline, "it did not come back"
    for device in devices:
        await device.close()
    assert stack.process.poll() is None


async def _sent(device: Http | Mqtt | Coap) -> bool:
    try:
        return await device.send(21.0)
    except OSError:
        return False


async def _http_status(stack: Stack, token: str) -> tuple[int, bool]:
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=stack.demo["httpUrl"], headers=headers, timeout=ANSWER_SECONDS) as client:
        answer = await client.post("/api/v1/datastreams/token", content=body(22.0))
        return answer.status_code, "retry-after" in answer.headers


async def _coap_code(stack: Stack, device: dict[str, str]) -> tuple[str, bool]:
    context = await aiocoap.Context.create_client_context(transports=["udp6"])
    uri = f"{stack.demo['coapUrl']}/api/v1/datastreams/token?token={device['token']}"
    request = aiocoap.Message(code=aiocoap.POST, uri=uri, payload=body(22.0))
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            answer = await context.request(request).response
        return answer.code.dotted, answer.opt.max_age is not None
    finally:
        await context.shutdown()
