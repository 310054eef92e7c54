"""The whole of AEMOS as `make up` starts it, on free ports and a directory of its own."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import psutil
from aemos_core.identity import AUDIENCE, ISSUER
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.ports import free_port

PORTS = (
    "HTTP_PORT",
    "MQTT_PORT",
    "COAP_PORT",
    "SOCKETIO_PORT",
    "REDIS_PORT",
    "GATEWAY_GRPC_PORT",
    "INGEST_GRPC_PORT",
    "RULES_GRPC_PORT",
    "SCHEDULER_GRPC_PORT",
    "NOTIFY_GRPC_PORT",
)
WITHIN_S = 20.0
_POLL_S = 0.05
READY_SECONDS = 1_800.0  # thousands of demo devices take minutes to make


class Stack:
    """A running installation with its demo organization."""

    def __init__(self, var: Path, process: subprocess.Popen[bytes], environment: dict[str, str]) -> None:
        self.var = var
        self.process = process
        self.environment = environment
        self.demo: dict[str, Any] = json.loads((var / "demo.json").read_text(encoding="utf-8"))
        status, answer = self.call("POST", "/api/v1/auth/login", self.demo["login"], token="")
        assert status == 200, answer
        self.token: str = answer["accessToken"]

    def call(self, method: str, path: str, body: Any = None, token: str | None = None) -> tuple[int, Any]:
        """Status and JSON of a request; as the demo's administrator unless a token is given."""
        token = self.token if token is None else token
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"} if token else {
            "Content-Type": "application/json"
        }  # fmt: skip
        request = urllib.request.Request(self.demo["httpUrl"] + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def send(self, value: Any, device: int = 0, **fields: Any) -> tuple[int, Any]:
        """Posts a reading of a demo device."""
        body = {"value": value, "variableName": "temperature", **fields}
        return self.call("POST", "/api/v1/datastreams/token", body, self.demo["devices"][device]["token"])

    def token_of(self, role: str, organization_id: int = 1) -> str:
        """An access token of a user with this role, of a session of its own, signed as ingest signs (on SQLite)."""
        with sqlite3.connect(f"file:{self.var}/ingest.db?mode=ro", uri=True) as database:
            kid, private = database.execute("SELECT kid, private_key FROM signing_key").fetchone()
        key, now = Ed25519PrivateKey.from_private_bytes(private), int(time.time())
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "1", "sid": str(secrets.randbits(63)), "iat": now}
        claims |= {"exp": now + 900, "org": organization_id, "role": role}
        return jwt.encode(claims, key, "EdDSA", headers={"kid": kid})

    def pids(self, name: str) -> list[int]:
        """Processes of this installation whose command line ends so, such as "aemos_rules worker"."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if " ".join(child.cmdline()).endswith(name):
                    found.append(child.pid)
            except psutil.Error:
                continue
        return found


def eventually(found: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    """What `found` returns once it is true; AssertionError after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not (result := found()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {found}"
        time.sleep(_POLL_S)
    return result


@contextmanager
def running(var: Path, **settings: str) -> Iterator[Stack]:
    """Starts `aemos up`, waits for its demo.json, and stops it by its pid."""
    ports = {f"AEMOS_{name}": str(free_port()) for name in PORTS}
    environment = {**os.environ, **ports, "AEMOS_VAR_DIR": str(var), **settings}
    var.mkdir(parents=True, exist_ok=True)
    with (var / "log").open("ab") as log:
        command = [sys.executable, "-m", "aemos_client", "up"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(var, process)
        yield Stack(var, process, environment)
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        finally:
            for child in children:
                if child.is_running():
                    child.kill()


def _wait(var: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not (var / "demo.json").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError((var / "log").read_text(encoding="utf-8")[-4000:])
        time.sleep(0.1)
