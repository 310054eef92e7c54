"""How every process lives: wire, run its components until told to stop, drain, close in reverse."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

import uvloop

from aemos_core import logs, telemetry
from aemos_core.settings import ServiceSettings, load

log = logging.getLogger("aemos.process")
S = TypeVar("S", bound=ServiceSettings)

_CLOSING_SECONDS = 3.0
"""How long a process may take to close after its drain time, or after a component died."""


class Component(Protocol):
    """Something that runs until it is told to stop; when one dies, the process dies and is started again."""

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then finishes what it began and returns."""


def authority(host: str, port: int) -> str:
    """Host and port as a URL has them: an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class PortInUse(Exception):
    """A port that another process holds, or that is nowhere: names the port and the variables that move it."""

    def __init__(self, port: int, variable: str) -> None:
        super().__init__(
            f"port {port} is in use: free it or set {variable}; or AEMOS_BIND is not an address of this machine"
        )


Wire = Callable[[S], AbstractAsyncContextManager[Sequence[Component]]]


def main(package: str, settings_class: type[S], wire: Wire[S], worker: Wire[S] | None = None) -> None:
    """`python -m <package> [worker | migrate]`: a service, its worker, or the migrations of its database."""
    settings, name = load(settings_class), package.removeprefix("aemos_")
    match sys.argv[1:]:
        case []:
            run(name, settings, wire)
        case ["worker"] if worker is not None:
            run(f"{name}-worker", settings, worker)
        case ["migrate"]:  # who has no database does without SQLAlchemy
            database = importlib.import_module("aemos_core.database")
            asyncio.run(database.migrate(settings.database_of(name), package))
        case others:
            sys.exit(f"{package} does not know {' '.join(others)}")


def run(name: str, settings: S, wire: Wire[S]) -> None:
    """Runs a process to its end; exits with 0 when asked to stop, with 1 otherwise."""
    logs.configure(name, settings.log_level)
    try:
        uvloop.run(_main(name, settings, wire))
    except PortInUse as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    except BaseExceptionGroup:
        raise SystemExit(1) from None
    except Exception:
        log.exception("it did not start, or did not close")
        raise SystemExit(1) from None


async def _main(name: str, settings: S, wire: Wire[S]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told_to_stop() -> None:
        stop.set()
        _end_within(settings.drain_seconds + _CLOSING_SECONDS)

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, told_to_stop)
    with telemetry.exporting(name, settings):
        async with wire(settings) as components, asyncio.TaskGroup() as group:
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
        if not stop.is_set():  # what the others still have to finish is not cut
            _end_within(_CLOSING_SECONDS)
            raise


def _end_within(seconds: float) -> None:
    """Whatever ignores its cancellation, or keeps the loop busy: nothing keeps a process from its end."""
    timer = threading.Timer(seconds, os._exit, [1])
    timer.daemon = True
    timer.start()


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
