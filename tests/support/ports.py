"""Ports for the servers that tests start."""

import fcntl
import itertools
import socket
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

# Below those that Linux gives to clients (from 32,768 on): one of them could take the port of a server that is down
# for a moment.
_PORTS, _BLOCK = range(10_000, 32_500), 500


class Block:
    """Ports that are this process' own, by a lock, until it ends: another run of the tests takes another block."""

    def __init__(self) -> None:
        self._lock, first = self._take()
        self._ports = itertools.cycle(range(first, first + _BLOCK))

    def _take(self) -> tuple[IO[str], int]:
        for first in _PORTS[::_BLOCK]:
            lock = (Path(tempfile.gettempdir()) / f"aemos-ports-{first}.lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
            else:
                return lock, first
        raise RuntimeError("every block of ports belongs to another run of the tests")

    def free(self) -> int:
        """A port, TCP and UDP, that nobody uses and that no call before gave, as long as there are others."""
        for port in itertools.islice(self._ports, _BLOCK):
            with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp, suppress(OSError):
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
                return port
        raise RuntimeError(f"all {_BLOCK} ports of this process' block are in use")


_block = cache(Block)


def free_port() -> int:
    """A port for a server: nobody uses it, and no other run of the tests and no recent call was given it."""
    return _block().free()
