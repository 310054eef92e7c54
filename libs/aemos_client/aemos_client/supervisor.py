"""Keeps processes running: names what dies, starts it again, gives up on what dies again and again."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import time
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from aemos_core.waiting import wait

T = TypeVar("T")
_MOST_DEATHS = 5
_DEATHS_SECONDS = 60.0
_RESTART_SECONDS = 0.5
_READY_SECONDS = 60.0
_GRACE_SECONDS = 1.0


@dataclass(eq=False)
class Process:
    """Something to keep running. It is ready when it says so (sd_notify), or when `ready_port` accepts."""

    name: str
    command: Sequence[str]
    ready_port: int = 0
    stop_last: bool = False
    running: asyncio.subprocess.Process | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST_DEATHS))


class Supervisor:
    """An async context manager; leaving it stops every process, the last within the drain time."""

    def __init__(self, environment: Mapping[str, str], drain_seconds: float) -> None:
        self.status = 0
        self._drain_seconds = drain_seconds
        self.stopping = asyncio.Event()
        self._processes: list[Process] = []
        self._keepers: set[asyncio.Task[None]] = set()
        self._directory = tempfile.TemporaryDirectory(prefix="aemos-")
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.setblocking(False)
        address = str(Path(self._directory.name) / "notify")
        self._notify.bind(address)
        self._environment = {**environment, "NOTIFY_SOCKET": address}

    async def __aenter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._notify, self._heard)
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.stop()
        for last in (False, True):
            await self._end([process for process in self._processes if process.stop_last is last])
        for keeper in self._keepers:
            keeper.cancel()
        asyncio.get_running_loop().remove_reader(self._notify)
        self._notify.close()
        self._directory.cleanup()

    def stop(self) -> None:
        """Begins the end."""
        self.stopping.set()

    async def unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What it gives, or None when the end begins first: then it is cancelled, or not even begun."""
        if self.stopping.is_set():
            work.close()
            return None
        task, end = asyncio.create_task(work), asyncio.create_task(self.stopping.wait())
        await asyncio.wait([task, end], return_when=asyncio.FIRST_COMPLETED)
        end.cancel()
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.wait([task])
        return None

    async def run_once(self, command: Sequence[str]) -> bool:
        """Runs a command to its end; whether it succeeded."""
        process = await asyncio.create_subprocess_exec(*command, env=self._environment)
        return await process.wait() == 0

    async def start(self, processes: Sequence[Process]) -> None:
        """Starts processes and waits until all are ready, or the end begins."""
        self._processes += processes
        self._keepers |= {asyncio.create_task(self._keep(process)) for process in processes}
        until = time.monotonic() + _READY_SECONDS
        for process in processes:
            await wait(self.stopping, until - time.monotonic(), process.ready)
        late = [process.name for process in processes if not process.ready.is_set()]
        if late and not self.stopping.is_set():
            self._give_up(f"not ready within {_READY_SECONDS:.0f} s: {', '.join(late)}")

    async def _keep(self, process: Process) -> None:
        while not self.stopping.is_set():
            process.running = await asyncio.create_subprocess_exec(
                *process.command, env=self._environment, start_new_session=True
            )
            waiting = asyncio.create_task(self._until_accepting(process)) if process.ready_port else None
            status = await process.running.wait()
            if waiting is not None:
                waiting.cancel()
            if self.stopping.is_set():
                return
            self._died(process, status)
            await asyncio.sleep(_RESTART_SECONDS)

    def _died(self, process: Process, status: int) -> None:
        print(f"{process.name} died with status {status}; starting it again", flush=True)
        now = time.monotonic()
        process.deaths.append(now)
        if len(process.deaths) == _MOST_DEATHS and now - process.deaths[0] < _DEATHS_SECONDS:
            self._give_up(f"{process.name} died {_MOST_DEATHS} times within a minute: giving up")

    def _give_up(self, why: str) -> None:
        print(why, flush=True)
        self.status = 1
        self.stop()

    async def _until_accepting(self, process: Process) -> None:
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", process.ready_port)
                writer.close()
                process.ready.set()
                return
            await asyncio.sleep(0.02)

    def _heard(self) -> None:
        with suppress(BlockingIOError):
            while message := self._notify.recv(4096):
                pids = [line[8:] for line in message.split(b"\n") if line.startswith(b"MAINPID=")]
                for process in self._processes:
                    if process.running is not None and pids == [b"%d" % process.running.pid]:
                        process.ready.set()

    async def _end(self, processes: Sequence[Process]) -> None:
        alive = [p.running for p in processes if p.running is not None and p.running.returncode is None]
        for running in alive:
            running.terminate()
        if alive:
            waits = [asyncio.create_task(running.wait()) for running in alive]
            await asyncio.wait(waits, timeout=self._drain_seconds + _GRACE_SECONDS)
        for running in alive:
            if running.returncode is None:
                os.killpg(running.pid, 9)
                await running.wait()
