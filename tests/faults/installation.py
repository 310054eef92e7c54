"""An installation to break: the stack on a MariaDB and a Redis that can be killed, frozen, cut off and filled up."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import redis

from tests.faults.checker import Rows
from tests.faults.proxy import Proxy
from tests.support.mariadb import mariadb_server
from tests.support.ports import free_port
from tests.support.redis_server import redis_server
from tests.support.stack import Stack, running


class Server:
    """MariaDB or Redis: the same one, on the same port, whenever it is started again."""

    def __init__(self, name: str, make: Callable[[], AbstractContextManager[str]]) -> None:
        self._name = name
        self._make = make
        self._running = make()
        self.url = self._running.__enter__()
        self.port = int(re.findall(r":(\d+)/", self.url)[-1])

    @property
    def pid(self) -> int:
        """Its process, a child of ours."""
        ours = (p for p in psutil.Process().children() if p.name() == self._name)
        return next(p.pid for p in ours if str(self.port) in " ".join(p.cmdline()))

    def kill(self) -> None:
        """kill -9, as the power would."""
        os.kill(self.pid, 9)
        self.stop()

    def start(self) -> None:
        """After `kill`."""
        self._running = self._make()
        self._running.__enter__()

    def stop(self) -> None:
        """Ends it."""
        self._running.__exit__(None, None, None)


class Disk:
    """Where MariaDB keeps its data: a small file system of its own where we may mount one, so that it can be full."""

    def __init__(self, path: Path, is_small: bool) -> None:
        self.path = path
        self.is_small = is_small
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Leaves no room."""
        with self._ballast.open("wb", buffering=0) as file:
            size = 1 << 20
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2

    def empty(self) -> None:
        """Gives the room back."""
        self._ballast.unlink(missing_ok=True)


@dataclass
class Installation:
    """What faults are made of."""

    stack: Stack
    rows: Rows
    mariadb: Server
    redis: Server
    redis_data: Path
    to_mariadb: Proxy
    to_redis: Proxy
    disk: Disk
    devices: Iterator[int]

    def fresh(self, count: int) -> list[int]:
        """Demo devices that sent nothing yet."""
        return [next(self.devices) for _ in range(count)]

    @property
    def queue_url(self) -> str:
        """The jobs' Redis database, reached directly."""
        return f"redis://127.0.0.1:{self.redis.port}/1"

    def flush_redis(self) -> None:
        """Redis forgets everything."""
        with redis.Redis.from_url(self.queue_url) as client:
            client.flushall()

    def limit_redis(self, memory_bytes: int) -> None:
        """Redis refuses what needs memory beyond so much; 0: no limit."""
        with redis.Redis.from_url(self.queue_url) as client:
            client.config_set("maxmemory", memory_bytes)


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[Disk]:
    """A tmpfs of that size at `path`; a plain directory where mounting is not allowed."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield Disk(path, mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=True)


@contextmanager
def installation(root: Path, devices: int, disk_megabytes: int) -> Iterator[Installation]:
    """The stack with `devices` demo devices; its services reach their database and Redis through proxies."""
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(root / "disk", disk_megabytes))
        mariadb_port, redis_port = free_port(), free_port()
        (root / "redis").mkdir()
        mariadb = Server("mariadbd", lambda: mariadb_server(disk.path, mariadb_port))
        stack.callback(mariadb.stop)
        redis_ = Server("redis-server", lambda: redis_server(root / "redis", redis_port))
        stack.callback(redis_.stop)
        to_mariadb, to_redis = (stack.enter_context(Proxy.to(server.port)) for server in (mariadb, redis_))
        rows = _rows_of(mariadb_port)
        rows("CREATE USER aemos@'127.0.0.1'")  # root may write to a server that is read-only
        rows("GRANT ALL ON `aemos\\_%`.* TO aemos@'127.0.0.1'")
        settings: dict[str, Any] = {
            "AEMOS_DATABASE_URL": f"mysql+asyncmy://aemos@127.0.0.1:{to_mariadb.port}/aemos_{{service}}",
            "AEMOS_REDIS_URL": f"redis://127.0.0.1:{to_redis.port}/0",
            "AEMOS_DEMO_DEVICES": str(devices),
            "AEMOS_RULES_PARTITIONS": "2",
        }
        up = stack.enter_context(running(root / "var", **settings))
        yield Installation(up, rows, mariadb, redis_, root / "redis", to_mariadb, to_redis, disk, iter(range(devices)))


def _rows_of(port: int) -> Rows:
    command = ["mariadb", "--no-defaults", "-h127.0.0.1", f"-P{port}", "-uroot", "-N", "-B", "-e"]

    def run(statement: str) -> list[tuple[str, ...]]:
        text = statement.format(ingest="aemos_ingest", rules="aemos_rules", notify="aemos_notify")
        done = subprocess.run([*command, text], capture_output=True, text=True, check=True, timeout=30)
        return [tuple(line.split("\t")) for line in done.stdout.splitlines()]

    return run
