"""Streams of numbered notifications into a running installation, and clients that write down what they hear."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import redis
from aemos.v1.job_pb2 import Announcement
from aemos_core.announce import Announcer
from aemos_core.names import device_id_room, device_room
from aemos_core.redis_link import open_redis
from redis.exceptions import RedisError

from tests.support.infra import NODE
from tests.support.ports import free_port
from tests.support.stack import Stack


def organization_of(stack: Stack) -> int:
    """Of the demo's administrator."""
    claims = stack.token.split(".")[1]
    return int(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["org"])


def redis_url(stack: Stack) -> str:
    """Of its own Redis, or of the one it was given."""
    own = f"redis://127.0.0.1:{stack.environment['AEMOS_REDIS_PORT']}/0"
    return stack.environment.get("AEMOS_REDIS_URL", own)


async def announce(stack: Stack, device: dict[str, Any], numbers: Sequence[int], pause: float = 0.0) -> None:
    """Announces these numbers as a producer's outbox does: again and again until Redis took them, 20 at a time."""
    organization, rooms = organization_of(stack), [device_room(device["uuid"]), device_id_room(device["id"])]
    async with open_redis(redis_url(stack)) as connection:
        announcer = Announcer(connection)
        for start in range(0, len(numbers), 20):
            batch = [
                Announcement(
                    uuid=f"{device['uuid']}-{number}",
                    organization_id=organization,
                    event="device-state-change",
                    rooms=rooms,
                    notification_json=json.dumps({"type": "device-state-change", "number": number}),
                )
                for number in numbers[start : start + 20]
            ]
            await _until_taken(announcer, batch)
            await asyncio.sleep(pause)


async def _until_taken(announcer: Announcer, batch: Sequence[Announcement]) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await announcer.announce(batch)
                return
            except (RedisError, OSError):
                await asyncio.sleep(0.05)


class Output:
    """What a client printed."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self._path = path
        self.process = process

    def text(self) -> str:
        """All of it."""
        return self._path.read_text(encoding="utf-8", errors="replace")

    def objects(self) -> list[dict[str, Any]]:
        """Its whole lines that are JSON objects."""
        lines = self.text().split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    @property
    def heard(self) -> int:
        """How many notifications, without reading them all."""
        return self.text().count('"number":')

    def numbers(self) -> list[int]:
        """Of the notifications heard, in the order they came."""
        return [found["number"] for found in self.objects() if "number" in found]


@contextmanager
def client(path: Path, *command: str) -> Iterator[Output]:
    """A program whose output goes to a file, killed at the end."""
    with (
        path.open("ab") as output,
        subprocess.Popen(["stdbuf", "-oL", *command], stdout=output, stderr=output, cwd=NODE) as process,
    ):
        try:
            yield Output(path, process)
        finally:
            process.kill()


def follow(stack: Stack, subscription: dict[str, Any], url: str = "") -> list[str]:
    """The official Socket.IO client, following a subscription over every disconnect."""
    return ["node", "follow.js", url or stack.demo["socketIoUrl"], stack.token, json.dumps(subscription)]


def persistent(stack: Stack, device: dict[str, Any], port: int = 0) -> list[str]:
    """mosquitto_sub with a session that is kept."""
    mqtt = stack.demo["mqtt"]
    address = ["-h", mqtt["host"], "-p", str(port or mqtt["port"]), "-u", device["uuid"], "-P", device["token"]]
    topic = f"aemos/devices/{device['uuid']}/notifications"
    return ["mosquitto_sub", *address, "-c", "-i", "persistent", "-q", "1", "-t", topic]


def is_kept(stack: Stack, device: dict[str, Any]) -> bool:
    """Whether the session of `persistent` is subscribed, for all gateways."""
    with redis.Redis.from_url(redis_url(stack)) as connection:
        session: Any = connection.hget(f"mqtt-sessions:{device['uuid']}", "persistent")
    return b"notifications" in (session or b"")


@contextmanager
def replica(stack: Stack, module: str, *ports: str) -> Iterator[dict[str, int]]:
    """One more process of a service, on these ports of its own; gives them by name."""
    (first,) = stack.pids(module)
    own = {name: free_port() for name in ports}
    environment = {**psutil.Process(first).environ(), **{name: str(port) for name, port in own.items()}}
    environment.pop("NOTIFY_SOCKET", None)
    with (stack.var / f"{module}-replica.log").open("ab") as log:
        command = [sys.executable, "-m", module]
        with subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log) as process:
            try:
                yield own
            finally:
                process.terminate()
