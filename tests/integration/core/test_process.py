"""Facts about how a process begins and ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import asyncio, sys
from contextlib import asynccontextmanager
from aemos_core import process
from aemos_core.settings import ServiceSettings

process._CLOSING_SECONDS = 0.3

class Finishes:
    async def run(self, stop):
        await stop.wait()
        await asyncio.sleep(0.2)
        print("finished", flush=True)

class Fails:
    async def run(self, stop):
        await stop.wait()
        raise RuntimeError("at its end")

class Ignores:
    async def run(self, stop):
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass

@asynccontextmanager
async def wire(_):
    if "begin" in sys.argv:
        raise OSError("cannot begin")
    yield [globals()[name]() for name in sys.argv[2:] if name != "close"]
    if "close" in sys.argv:
        await asyncio.Event().wait()

process.run("tested", ServiceSettings(service_secret="x", drain_seconds=float(sys.argv[1])), wire)
"""


def ended(*arguments: str) -> tuple[int, str, list[str], float]:
    """Status, output, messages logged and seconds after SIGTERM, which is sent once the process is ready."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        first = process.stderr.readline()
        if json.loads(first)["message"] == "ready":
            process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        try:
            process.wait(10)
        finally:
            process.kill()
        lines = [first, *process.stderr.read().splitlines()]
        messages = [json.loads(line)["message"] for line in lines]
        return process.returncode, process.stdout.read(), messages, time.monotonic() - told


@pytest.mark.parametrize("arguments", [("Finishes", "Ignores"), ("Finishes", "close")])
def test_nothing_keeps_a_process_from_its_end(arguments: tuple[str, ...]) -> None:
    """Not a component that ignores its cancellation, nor what does not close: a little after its drain time it ends."""
    status, _, _, seconds = ended("0.3", *arguments)
    assert status == 1
    assert seconds < 5


def test_a_failure_at_the_end_cuts_nobody() -> None:
    """A component that fails when it is told to stop is reported; what the others still have to finish is finished."""
    status, output, messages, _ = ended("5", "Finishes", "Fails")
    assert (status, output) == (0, "finished\n")
    assert "a component died: Fails" in messages


def test_what_cannot_begin_says_so_in_one_line() -> None:
    """A JSON line, as everything else."""
    status, _, messages, _ = ended("5", "begin")
    assert (status, messages) == (1, ["it did not start, or did not close"])


def test_a_role_that_is_none_is_refused() -> None:
    """Who mistypes `worker` does not get a second service."""
    environment = {**os.environ, "AEMOS_SERVICE_SECRET": "x"}
    command = [sys.executable, "-m", "aemos_scheduler", "worker"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (1, "aemos_scheduler does not know worker\n")
