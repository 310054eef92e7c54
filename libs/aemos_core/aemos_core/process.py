"""How every process lives: wire, run its components until told to stop, drain, close in reverse."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import uvloop

from aemos_core import logs, telemetry
from aemos_core.settings import ServiceSettings

log = logging.getLogger("aemos.process")

_DEATH_SECONDS = 3.0


class Component(Protocol):
    """Something that runs until it is told to stop; when one dies, the process dies and is started again."""

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then finishes what it began and returns."""


class PortInUse(Exception):
    """A port that another process holds: names the port and the variable that moves it."""

    def __init__(self, port: int, variable: str) -> None:
        super().__init__(f"port {port} is in use: free it or set {variable}")


Wire = Callable[[], AbstractAsyncContextManager[Sequence[Component]]]


def run(name: str, settings: ServiceSettings, wire: Wire) -> None:
    """Runs a process to its end; exits with 0 when asked to stop, with 1 otherwise."""
    logs.configure(name, settings.log_level)
    try:
        uvloop.run(_main(name, settings, wire))
    except PortInUse as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    except BaseExceptionGroup:
        raise SystemExit(1) from None


async def _main(name: str, settings: ServiceSettings, wire: Wire) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    with telemetry.exporting(name, settings):
        async with wire() as components, asyncio.TaskGroup() as group:
            _spare_the_collector()
            tasks = [group.create_task(_run(c, stop), name=type(c).__name__) for c in components]
            _notify_ready()
            log.info("ready")
            await stop.wait()
            await _drain(tasks, settings.drain_seconds)
    log.info("stopped")


def _spare_the_collector() -> None:
    """What was made at the start stays for good, and hot paths make thousands of objects a batch, hardly any in cycles:
    looking at all of them every 700 costs a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)


async def _run(component: Component, stop: asyncio.Event) -> None:
    try:
        await component.run(stop)
        if not stop.is_set():
            raise RuntimeError(f"{type(component).__name__} ended by itself")
    except Exception:
        log.exception("a component died: %s", type(component).__name__)
        # Nothing that ignores its cancellation may keep a dead process from being started again.
        asyncio.get_running_loop().call_later(_DEATH_SECONDS, os._exit, 1)
        raise


async def _drain(tasks: Sequence[asyncio.Task[None]], seconds: float) -> None:
    """Waits for the components; after the drain time they are cut, for an orchestrator would kill them next."""
    _, late = await asyncio.wait(tasks, timeout=seconds)
    for task in late:
        log.warning("%s did not finish within %s s", task.get_name(), seconds)
        task.cancel()


def _notify_ready() -> None:
    """Tells whoever started us, by the protocol of sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1\nMAINPID=%d" % os.getpid(), address)
