"""What every scenario of the benchmark needs: an installation on MariaDB, CPU by process, medians, Markdown."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from tests.support.mariadb import mariadb_server
from tests.support.stack import Stack, running

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    "aemos_gateway",
    "aemos_ingest",
    "aemos_rules",
    "aemos_rules worker",
    "aemos_scheduler",
    "aemos_notify",
    "aemos_notify worker",
)
"""Our processes, by how their command lines end."""
_JUDGED_SECONDS = 120.0
_YARDSTICK = """
import time
def add():
    total = 0
    for number in range(10_000_000):
        total += number
began = time.process_time()
add()
print(time.process_time() - began)
"""


def quantile(values: Sequence[float], q: float) -> float:
    """The value below which a share q of them lies."""
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def yardstick() -> float:
    """Seconds of CPU that ten million additions in Python take on each core while all are busy.

    The neighbours of a virtual machine share its cores' execution units and caches: its CPU time then buys less, which
    no count of the machine shows. Figures are comparable only where this one is.
    """
    command = [sys.executable, "-c", _YARDSTICK]
    adding = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(os.cpu_count() or 1)]
    return statistics.mean(float(process.communicate(timeout=60)[0]) for process in adding)


def header(family: str) -> list[str]:
    """The first lines of a page: when, where, how."""
    return [
        f"# Measured by `make bench ONLY={family}`",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores shared by everything, {platform.platform()}, "
        f"Python {platform.python_version()}.",
        "",
    ]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]


@dataclass(frozen=True, slots=True)
class Installation:
    """All of AEMOS with a MariaDB of its own; `others` are MariaDB and Redis by name."""

    stack: Stack
    database_url: str
    folder: Path
    others: dict[str, int]

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU so far, by process."""
        times = {name: psutil.Process(pid).cpu_times() for name, pid in self._pids().items()}
        return {name: t.user + t.system for name, t in times.items()}

    def memory(self) -> dict[str, float]:
        """Resident memory in MB, by process."""
        return {name: psutil.Process(pid).memory_info().rss / 1e6 for name, pid in self._pids().items()}

    def own_memory(self) -> dict[str, float]:
        """Memory in MB, by process of ours; what several share is divided among them (PSS)."""
        return {name: psutil.Process(self._pids()[name]).memory_full_info().pss / 1e6 for name in NAMES}

    def sql(self, statement: str) -> str:
        """What MariaDB answers, a line for each row."""
        port = re.search(r":(\d+)/", self.database_url)
        assert port
        command = ["mariadb", "--no-defaults", "-h127.0.0.1", f"-P{port[1]}", "-uroot", "-N", "-e", statement]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout.strip()

    def seconds_behind(self) -> float:
        """Seconds from now until no reading waits for its rules, which is when its outbox row is gone."""
        began = time.perf_counter()
        while time.perf_counter() - began < _JUDGED_SECONDS:
            if self.sql("SELECT 1 FROM aemos_ingest.outbox WHERE kind = 'evaluate_readings' LIMIT 1") == "":
                return time.perf_counter() - began
            time.sleep(0.05)
        return float("inf")

    def tokens(self, devices: int | None = None) -> Path:
        """A file with the token of each demo device on a line, or of the first ones."""
        path = self.folder / "tokens"
        path.write_text("\n".join(one["token"] for one in self.stack.demo["devices"][:devices]), encoding="ascii")
        return path

    def _pids(self) -> dict[str, int]:
        return {name: self.stack.pids(name)[0] for name in NAMES} | self.others


@contextmanager
def installation(devices: int, **settings: str) -> Iterator[Installation]:
    """Starts everything: MariaDB (durable at each commit), Redis (append-only, everysec), one worker of each kind."""
    with tempfile.TemporaryDirectory(prefix="aemos-bench-") as name:
        folder = Path(name)
        with (
            mariadb_server(folder / "mariadb") as url,
            running(folder / "var", AEMOS_DATABASE_URL=url, AEMOS_DEMO_DEVICES=str(devices), **settings) as stack,
        ):
            commands = {process.pid: process.name() for process in psutil.Process().children(recursive=True)}
            others = {name: pid for pid, name in commands.items() if name in ("mariadbd", "redis-server")}
            yield Installation(stack, url, folder, others)
