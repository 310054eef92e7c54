"""What one notify process does: deliveries a second to a room, the time from publishing to receiving, and memory."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from aemos.v1.job_pb2 import Announcement
from aemos_core.announce import Announcer
from aemos_core.names import device_id_room, device_room
from aemos_core.redis_link import open_redis

from tests.bench.support import header, median, quantile, table
from tests.support.notifications import organization_of, redis_url
from tests.support.stack import Stack, running

CLIENTS, BURST, ROUNDS = 200, 5_000, 3
WINDOW = 900
"""Notifications that a client may not have received yet: less than its queue holds."""
IDLE = 500
MANY, RECEIVING, SECONDS, PER_SECOND = 5_000, 50, 10, 20
_AT_ONCE = 50


class Sockets:
    """Light clients in a process of their own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def report(self) -> dict[str, Any]:
        """What they received since the last report."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found = json.loads(self._process.stdout.readline())
        assert isinstance(found, dict)
        return found


@contextmanager
def sockets(stack: Stack, listening: int, silent: int = 0) -> Iterator[Sockets]:
    """So many that hear the first device, and so many that hear nothing."""
    subscription = json.dumps({"deviceUuid": stack.demo["devices"][0]["uuid"]})
    command = ["-m", "tests.bench.sockets", stack.demo["socketIoUrl"], stack.token, subscription]
    arguments = [sys.executable, *command, str(listening), str(silent)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n", "a client was not let in"
        try:
            yield Sockets(process)
        finally:
            process.kill()


class Producer:
    """Announces notifications of about 200 bytes, of the first device."""

    def __init__(self, stack: Stack, announcer: Announcer) -> None:
        device = stack.demo["devices"][0]
        self._rooms = [device_room(device["uuid"]), device_id_room(device["id"])]
        self._uuid = device["uuid"]
        self._organization = organization_of(stack)
        self._announcer = announcer
        self._count = 0

    async def announce(self, count: int) -> None:
        """In one call."""
        await self._announcer.announce([self._next() for _ in range(count)])

    def _next(self) -> Announcement:
        self._count += 1
        notification = {
            "type": "device-state-change",
            "deviceUuid": self._uuid,
            "metadata": {"stateName": "temperatureAlert", "newValue": "warning", "oldValue": "normal"},
            "sentNs": time.time_ns(),
        }
        return Announcement(
            uuid=f"bench-{time.time_ns()}-{self._count}",
            organization_id=self._organization,
            event="device-state-change",
            rooms=self._rooms,
            notification_json=json.dumps(notification),
        )


async def _fan_out(stack: Stack, producer: Producer, found: Sockets) -> tuple[float, float]:
    """Deliveries a second to all, and us of CPU of notify for each."""
    process = psutil.Process(stack.pids("aemos_notify")[0])
    rates, costs = [], []
    for _ in range(ROUNDS):
        found.report()
        before, began, received, last = sum(process.cpu_times()[:2]), time.time_ns(), 0, 0
        deadline = time.monotonic() + 60
        for sent in range(0, BURST + _AT_ONCE, _AT_ONCE):
            await producer.announce(min(_AT_ONCE, BURST - sent))
            while received < (sent - WINDOW if sent < BURST else BURST) * CLIENTS:
                assert time.monotonic() < deadline, received
                await asyncio.sleep(0.002)
                report = found.report()
                received, last = received + report["events"], max(last, report["lastNs"])
        rates.append(received / (last - began) * 1e9)
        costs.append((sum(process.cpu_times()[:2]) - before) / received * 1e6)
    return median(rates), median(costs)


async def _delays(producer: Producer, found: Sockets, count: int, pause: float) -> list[float]:
    found.report()
    for _ in range(count):
        await producer.announce(1)
        await asyncio.sleep(pause)
    await asyncio.sleep(0.5)
    delays: list[float] = found.report()["delays"]
    return delays


async def _measure(stack: Stack) -> list[tuple[str, str]]:
    process = psutil.Process(stack.pids("aemos_notify")[0])
    async with open_redis(redis_url(stack)) as redis:
        producer = Producer(stack, Announcer(redis))
        with sockets(stack, 1) as found:
            idle = await _delays(producer, found, IDLE, 0.01)
        with sockets(stack, RECEIVING, MANY - RECEIVING) as found:
            many = await _delays(producer, found, SECONDS * PER_SECOND, 1 / PER_SECOND)
            memory = process.memory_info().rss / 1e6
        with sockets(stack, CLIENTS) as found:
            rate, cost = await _fan_out(stack, producer, found)
    assert (len(idle), len(many)) == (IDLE, SECONDS * PER_SECOND * RECEIVING)
    return [
        (f"deliveries/s to one room of {CLIENTS}, one notify process", f"{rate:,.0f}"),
        ("CPU of notify for a delivery", f"{cost:.1f} us"),
        ("publish -> received, idle, p50 / p99", f"{median(idle):.1f} / {quantile(idle, 0.99):.1f} ms"),
        (f"{MANY:,} clients, 1 % receiving: memory of notify", f"{memory:,.0f} MB"),
        (f"{MANY:,} clients, 1 % receiving: publish -> received, p99", f"{quantile(many, 0.99):.1f} ms"),
    ]


def measure() -> str:
    """The page."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="aemos-bench-") as name, running(Path(name) / "var") as stack:
        rows = asyncio.run(_measure(stack))
    note = "Clients are raw sockets in one process on the same machine; notifications of about 250 bytes."
    return "\n".join([*header("notify"), note, "", *table(("work", "measured"), rows), ""])
