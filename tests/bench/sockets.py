"""Socket.IO clients as light as they can be, in a process of their own: `python -m tests.bench.sockets URL TOKEN
SUBSCRIPTION LISTENING SILENT` connects so many that subscribe and so many that do not, says "ready", and answers each line
on its input with a JSON line: what was received since the last one, and its delays.
"""

from __future__ import annotations

import json
import re
import resource
import select
import socket
import struct
import sys
import time
from typing import Any

_EVENT = b'42["device-state-change",'
_SENT = re.compile(rb'"sentNs": ?(\d+)')
_PING, _PONG = b"\x81\x012", b"\x81\x81\0\0\0\x003"
_WHOLE_DELAYS = 200_000
"""Beyond so many events only their number is kept."""


def _frame(text: str) -> bytes:
    """A masked text frame; a mask of zeros leaves the text as it is (RFC 6455, 5.3)."""
    data = text.encode()
    length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack("!H", len(data))
    return b"\x81" + length + bytes(4) + data


def _until(connection: socket.socket, marker: bytes, received: bytes = b"") -> bytes:
    while marker not in received:
        chunk = connection.recv(65536)
        if not chunk:
            raise ConnectionError(received)
        received += chunk
    return received


def _connected(host: str, port: int, token: str, subscription: str) -> socket.socket:
    connection = socket.create_connection((host, port), timeout=60)
    connection.sendall(
        b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    _until(connection, b'"sid"')
    connection.sendall(_frame("40" + json.dumps({"token": token})))
    _until(connection, b'40{"sid"')
    if subscription:
        connection.sendall(_frame(f'420["subscribe",{subscription}]'))
        _until(connection, b'430[{"ok":true')
    connection.setblocking(False)
    return connection


class Clients:
    """All connections, read in turn."""

    def __init__(self, connections: list[socket.socket]) -> None:
        self._connections = {connection.fileno(): connection for connection in connections}
        self._poll = select.epoll()
        for number in self._connections:
            self._poll.register(number, select.EPOLLIN)
        self._poll.register(sys.stdin.fileno(), select.EPOLLIN)
        self._rest: dict[int, bytes] = {}
        self._clear()

    def _clear(self) -> None:
        self._events, self._last, self._delays = 0, 0, list[float]()

    def run(self) -> None:
        """Reads until the input ends."""
        while True:
            for number, _ in self._poll.poll():
                if number == sys.stdin.fileno():
                    if not sys.stdin.readline():
                        return
                    self._report()
                else:
                    self._read(number)

    def _read(self, number: int) -> None:
        data = self._rest.pop(number, b"") + self._connections[number].recv(1 << 18)
        if data.endswith(_PING):
            self._connections[number].send(_PONG)
        events = data.count(_EVENT)
        now = time.time_ns()
        if self._events < _WHOLE_DELAYS and len(data) < 4096:
            self._delays += [(now - int(sent)) / 1e6 for sent in _SENT.findall(data)]
        self._events += events
        self._last = now
        for length in range(len(_EVENT) - 1, 0, -1):  # an event cut in its name is counted when its rest comes
            if data.endswith(_EVENT[:length]):
                self._rest[number] = data[-length:]
                break

    def _report(self) -> None:
        found: dict[str, Any] = {"events": self._events, "lastNs": self._last, "delays": self._delays}
        print(json.dumps(found), flush=True)
        self._clear()


def main(url: str, token: str, subscription: str, listening: int, silent: int) -> None:
    """Connects, and serves its input."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    host, port = url.removeprefix("http://").split(":")
    wanted = [subscription] * listening + [""] * silent
    clients = Clients([_connected(host, int(port), token, each) for each in wanted])
    print("ready", flush=True)
    clients.run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
