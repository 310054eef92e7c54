"""A TCP proxy between two processes, to cut what they say to each other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Proxy:
    """Forwards connections to a port of this machine; its methods may be called by any thread."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._takes = True
        self._flows = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Resets every connection, and the new ones as soon as they come."""
        self._loop.call_soon_threadsafe(self._cut)

    def hold(self) -> None:
        """Takes connections and bytes, and passes nothing on: a black hole."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def heal(self) -> None:
        """As if nothing had been."""
        self._loop.call_soon_threadsafe(self._heal)

    def _cut(self) -> None:
        self._takes = False
        for writer in self._writers:
            writer.transport.abort()

    def _heal(self) -> None:
        self._takes = True
        self._flows.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = {writer}
        try:
            if self._takes:
                to_target, from_us = await asyncio.open_connection("127.0.0.1", self._target)
                writers.add(from_us)
                self._writers |= writers
                await asyncio.gather(self._pump(reader, from_us), self._pump(to_target, writer))
        except OSError:
            pass
        finally:
            self._writers -= writers
            for each in writers:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._flows.wait()
            writer.write(data)
            await writer.drain()
        with suppress(OSError):
            writer.write_eof()

    async def _run(self, ready: threading.Event, stop: asyncio.Event) -> None:
        self._heal()
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024) as server:
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await stop.wait()
            self._cut()
            self._flows.set()
            if serving := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(serving, timeout=5)

    def _thread(self, ready: threading.Event, stop: asyncio.Event) -> None:
        self._loop.run_until_complete(self._run(ready, stop))
        self._loop.close()

    @classmethod
    @contextmanager
    def to(cls, target: int) -> Iterator[Proxy]:
        """A proxy on a free port, in a thread of its own."""
        proxy, ready, stop = cls(target), threading.Event(), asyncio.Event()
        thread = threading.Thread(target=proxy._thread, args=(ready, stop))
        thread.start()
        try:
            assert ready.wait(10)
            yield proxy
        finally:
            proxy._loop.call_soon_threadsafe(stop.set)
            thread.join(10)
