"""The database is away: nothing is acknowledged, every protocol says so, and it goes on without a restart."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import aiocoap
import httpx
import psutil
import pytest

from tests.faults.checker import Rows
from tests.faults.load import Coap, Http, Mqtt, body
from tests.support.stack import Stack

ANSWER_SECONDS = 12.0
BACK_SECONDS = 20.0
Fault = Callable[[Rows], AbstractContextManager[None]]


def server() -> psutil.Process:
    """The MariaDB of these tests."""
    return next(p for p in psutil.Process().children(recursive=True) if p.name() == "mariadbd")


@contextmanager
def frozen(rows: Rows) -> Iterator[None]:
    """It takes connections and answers nothing, as behind a black hole."""
    pid = server().pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def stopped(rows: Rows) -> Iterator[None]:
    """It is gone, and comes back with what it had."""
    process = server()
    command = process.cmdline()
    process.kill()
    process.wait(10)
    try:
        yield
    finally:
        psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + BACK_SECONDS
        while not _answers(rows):
            assert time.monotonic() < deadline, "mariadbd does not come back"
            time.sleep(0.1)


def _answers(rows: Rows) -> bool:
    try:
        return bool(rows("SELECT 1"))
    except subprocess.CalledProcessError:
        return False


@contextmanager
def read_only(rows: Rows) -> Iterator[None]:
    """It has become a replica."""
    rows("SET GLOBAL read_only = 1")
    try:
        yield
    finally:
        rows("SET GLOBAL read_only = 0")


@contextmanager
def closed(rows: Rows) -> Iterator[None]:
    """It takes no connections any more, and has dropped those it had."""
    rows("ALTER USER aemos@'127.0.0.1' ACCOUNT LOCK")
    for (number,) in rows("SELECT id FROM information_schema.processlist WHERE user = 'aemos'"):
        rows(f"KILL {number}")
    try:
        yield
    finally:
        rows("ALTER USER aemos@'127.0.0.1' ACCOUNT UNLOCK")


@pytest.mark.parametrize("fault", [frozen, read_only, closed, stopped])
async def test_nothing_is_acknowledged_while_it_is_away(stack: Stack, rows: Rows, fault: Fault) -> None:
    """503 with Retry-After, no PUBACK, 5.03 with Max-Age; all are well again within 20 s of its return."""
    http, mqtt, coap = stack.demo["devices"][-3:]
    devices = (Http(stack, http), Mqtt(stack, mqtt), Coap(stack, coap))
    for device in devices:
        assert await device.send(20.0)
    with fault(rows):
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
