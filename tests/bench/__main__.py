"""`make bench`: the figures of docs/measured/bench.md, on MariaDB and Redis of its own on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import socketio

from tests.support.mariadb import mariadb_server
from tests.support.stack import Stack, running

ROOT = Path(__file__).resolve().parents[2]
DEVICES = 1_000
CONNECTIONS = 256
SECONDS = 15
SAMPLES = 300
ROUNDS = 3
NAMES = (
    "aemos_gateway",
    "aemos_ingest",
    "aemos_rules",
    "aemos_rules worker",
    "aemos_scheduler",
    "aemos_notify",
    "aemos_notify worker",
)
NODE_JS = {"post": "3.5 ms", "browser": "12.8 / 20.4 ms", "rate": "272/s with rules, 916/s without", "cpu": "6,200 us"}


def quantile(values: list[float], q: float) -> float:
    """The value below which a share q of them lies."""
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


class Client:
    """One HTTP connection of a device: as lean as a device's, so that the figure is the server's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> None:
        self._reader = reader
        self._writer = writer
        self._head = f"POST /api/v1/datastreams/token HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n"

    async def post(self, value: float) -> None:
        """Sends a temperature; returns when it is acknowledged."""
        body = json.dumps({"value": value, "variableName": "temperature"})
        self._writer.write(f"{self._head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert head.startswith(b"HTTP/1.1 201"), head
        assert length, head
        await self._reader.readexactly(int(length[1]))


async def latency(stack: Stack) -> dict[str, float]:
    """One client, one reading at a time, each changing a state: ms to the 201, and to the Socket.IO event."""
    device = stack.demo["devices"][0]
    browser = socketio.AsyncClient()
    arrived: asyncio.Queue[float] = asyncio.Queue()
    browser.on("device-state-change", lambda _: arrived.put_nowait(time.perf_counter()))
    await browser.connect(stack.demo["socketIoUrl"], auth={"token": stack.token}, transports=["websocket"])
    await browser.call("subscribe", {"deviceUuid": device["uuid"]})
    answered, heard = [], []
    address = stack.demo["httpUrl"].removeprefix("http://").split(":")
    client = Client(*await asyncio.open_connection(*address), device["token"])
    # Whatever the round before left, the device is normal now, and what was announced of that has arrived.
    for value in (26, 24):
        await client.post(value)
    with contextlib.suppress(TimeoutError):
        while await asyncio.wait_for(arrived.get(), 2):
            pass
    for number in range(SAMPLES + 20):
        began = time.perf_counter()
        await client.post(26 - number % 2 * 2)
        answer = time.perf_counter() - began
        at = await asyncio.wait_for(arrived.get(), 10)
        if number >= 20:
            answered.append(answer * 1000)
            heard.append((at - began) * 1000)
    await browser.disconnect()
    return {
        "post_p50": statistics.median(answered),
        "post_p99": quantile(answered, 0.99),
        "event_p50": statistics.median(heard),
        "event_p99": quantile(heard, 0.99),
    }


def cpu(stack: Stack, others: dict[str, int]) -> dict[str, float]:
    """Seconds of CPU so far, by process."""
    pids = {name: stack.pids(name)[0] for name in NAMES} | others
    times = {name: psutil.Process(pid).cpu_times() for name, pid in pids.items()}
    return {name: t.user + t.system for name, t in times.items()}


def throughput(stack: Stack, var: Path, others: dict[str, int], database: str) -> dict[str, Any]:
    """256 connections for 15 s; acknowledged a second, CPU a reading, and how long the rules are behind at the end."""
    tokens = var / "tokens"
    tokens.write_text("\n".join(device["token"] for device in stack.demo["devices"]), encoding="ascii")
    before = cpu(stack, others)
    script = str(ROOT / "tests/bench/ingest.lua")
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "--latency", "-s", script, stack.demo["httpUrl"]]
    environment = os.environ | {"AEMOS_BENCH_TOKENS": str(tokens)}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120).stdout
    ended = time.perf_counter()
    behind = wait_until_judged(database, ended)
    after = cpu(stack, others)
    match = re.search(r"(\d+) requests in ([\d.]+)s", output)
    assert match, output
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    timeouts = re.search(r"timeout (\d+)", output)
    acknowledged = int(match[1]) - (int(refused[1]) if refused else 0)
    percentile = re.search(r"99%\s+([\d.]+\w+)", output)
    return {
        "rate": acknowledged / float(match[2]),
        "refused": int(refused[1]) if refused else 0,
        "timeouts": int(timeouts[1]) if timeouts else 0,
        "p99": percentile[1] if percentile else "",
        "behind": behind,
        "us": {name: (after[name] - before[name]) / acknowledged * 1e6 for name in after},
    }


def wait_until_judged(database: str, ended: float) -> float:
    """Seconds from the end of the load until no reading waits for its rules: the outbox is empty."""
    port = re.search(r":(\d+)/", database)
    assert port
    query = "SELECT COUNT(*) FROM aemos_ingest.outbox"
    command = ["mariadb", "-h127.0.0.1", f"-P{port[1]}", "-uroot", "-N", "-e", query]
    while time.perf_counter() - ended < 120:
        left = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        if left.strip() == "0":
            return time.perf_counter() - ended
        time.sleep(0.1)
    return float("inf")


def page(latencies: list[dict[str, float]], loads: list[dict[str, Any]], memory: dict[str, float]) -> str:
    """The Markdown of docs/measured/bench.md: medians of the rounds."""

    def median(key: str) -> float:
        return statistics.median(one[key] for one in latencies)

    rate = statistics.median(load["rate"] for load in loads)
    us = {name: statistics.median(load["us"][name] for load in loads) for name in loads[0]["us"]}
    ours = sum(us[name] for name in NAMES)
    rates = ", ".join(f"{load['rate']:,.0f}" for load in loads)
    lines = [
        "# Measured by `make bench`",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.platform()}. Medians of {ROUNDS} rounds; "
        "MariaDB (`innodb_flush_log_at_trx_commit=1`), Redis (append-only, everysec), all services, one rule worker and "
        f"the load generator share the cores. {DEVICES:,} devices, two chains each, one reading in a hundred changes a "
        "state; limits and tracing at their defaults.",
        "",
        "| work | AEMOS | must | the same design in plain Node.js |",
        "|---|---|---|---|",
        f"| one client, POST -> 201, p50 (p99) | {median('post_p50'):.1f} ms ({median('post_p99'):.1f}) | 5 ms | "
        f"{NODE_JS['post']} |",
        f"| POST -> Socket.IO event, p50 / p99 | {median('event_p50'):.1f} / {median('event_p99'):.1f} ms | 10 / 25 ms | "
        f"{NODE_JS['browser']} |",
        f"| {CONNECTIONS} connections, {SECONDS} s, acknowledged | {rate:,.0f}/s ({rates}) | 5,000/s | {NODE_JS['rate']} |",
        f"| rules behind at the end | {max(load['behind'] for load in loads):.1f} s at most | 2 s | - |",
        f"| CPU of our processes a reading, rules included | {ours:.0f} us | - | {NODE_JS['cpu']} |",
        f"| refused, timed out | {sum(x['refused'] for x in loads)}, {sum(x['timeouts'] for x in loads)} | - | - |",
        "",
        "| process | CPU a reading | resident memory after the load (at most 200 MB) |",
        "|---|---|---|",
        *(f"| {name} | {us[name]:.0f} us | {memory[name]:.0f} MB |" for name in us),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measures and writes the page."""
    with tempfile.TemporaryDirectory(prefix="aemos-bench-") as folder:
        var = Path(folder)
        with (
            mariadb_server(var / "mariadb") as database,
            running(var / "var", AEMOS_DATABASE_URL=database, AEMOS_DEMO_DEVICES=str(DEVICES)) as stack,
        ):
            commands = {p.pid: p.name() for p in psutil.Process().children(recursive=True)}
            others = {name: pid for pid, name in commands.items() if name in ("mariadbd", "redis-server")}
            latencies, loads = [], []
            for _ in range(ROUNDS):
                latencies.append(asyncio.run(latency(stack)))
                loads.append(throughput(stack, var, others, database))
                print(latencies[-1], loads[-1], flush=True)
            pids = {name: stack.pids(name)[0] for name in NAMES} | others
            memory = {name: psutil.Process(pid).memory_info().rss / 1e6 for name, pid in pids.items()}
    text = page(latencies, loads, memory)
    (ROOT / "docs/measured/bench.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
