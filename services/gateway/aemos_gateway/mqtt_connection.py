"""One TCP connection of a device: packets in, joined writes out, and the reasons to stop reading."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from enum import Enum
from typing import cast

from aemos_gateway.mqtt_frames import Frames, ProtocolError

log = logging.getLogger("aemos.gateway.mqtt")

CLOSE_SECONDS = 5.0
"""A peer that does not take its last bytes within this is cut off."""
KEEP_ALIVE_FACTOR = 1.5
"""MQTT 3.1.1, 3.1.2.10."""
TURN_SECONDS = 0.002
"""So long, and one packet longer, may a connection keep the loop: one read can bring a hundred thousand packets."""


class Hold(Enum):
    """Why nothing is read from a connection at the moment."""

    ADMISSION = "its CONNECT is being answered"
    WINDOW = "too many of its readings wait for their commit"
    BUSY = "one of its readings waits to be tried again"
    SAVING = "too many of its subscriptions wait to be stored"
    TURN = "others have theirs"
    LEAVING = "this process stops"
    WRITING = "the peer does not read"


class Connection(asyncio.Protocol):
    """A transport whose packets go to a function.

    `made` is called when the peer is there, and may `end` it at once.
    """

    def __init__(self, made: Callable[[Connection], None]) -> None:
        self._made = made
        self._loop = loop = asyncio.get_running_loop()
        self._frames = Frames()
        self._connect: asyncio.Future[bytes | None] = loop.create_future()
        self._receive: Callable[[int, bytes], None] = self._take_connect
        self._out: list[bytes] = []
        self._heard_at = loop.time()
        self._silence_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport
        self.peer = ""
        self.holds: set[Hold] = set()
        self.ending = False
        self._has_left = False
        self.ended: asyncio.Future[None] = loop.create_future()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class, only by what it does
        address = transport.get_extra_info("peername") or ("", 0)
        self.peer = f"{address[0]}:{address[1]}"
        self._made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ending = True
        if not self._connect.done():
            self._connect.set_result(None)
        self._set_timer(None)
        self.ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self._frames.push(data)
        self._read_on()

    def eof_received(self) -> bool:
        """Keeps the transport until what came before is handled: a device may send, say DISCONNECT and leave."""
        if self.ending:
            return False
        if not self._has_left:
            self._has_left = True
            self._heard_at, self._silence_s = self._loop.time(), CLOSE_SECONDS
            self._check_silence()
            self._loop.call_soon(self._read_on)
        return True

    def pause_writing(self) -> None:
        self.hold(Hold.WRITING)

    def resume_writing(self) -> None:
        self.release(Hold.WRITING)

    # Packets.

    async def connect_packet(self) -> bytes:
        """The body of the CONNECT; nothing behind it is read until `open`. ProtocolError when the peer leaves first."""
        body = await self._connect
        if body is None:
            raise ProtocolError("gone before its CONNECT")
        return body

    def open(self, receive: Callable[[int, bytes], None], keep_alive_s: int) -> None:
        """From now on packets go to `receive`, which may raise ProtocolError; nothing when the connection is ending."""
        if self.ending:
            return
        self._receive = receive
        self._frames.opening = False
        if keep_alive_s:
            self._silence_s = keep_alive_s * KEEP_ALIVE_FACTOR
            self._check_silence()
        self.release(Hold.ADMISSION)

    def _take_connect(self, _: int, body: bytes) -> None:
        self.hold(Hold.ADMISSION)
        self._connect.set_result(body)

    def _read_on(self) -> None:
        until = time.monotonic() + TURN_SECONDS
        try:
            while not self.ending and not self.holds and (packet := self._frames.cut()) is not None:
                self._receive(*packet)
                if time.monotonic() > until:
                    self.hold(Hold.TURN)
                    self._loop.call_soon(self.release, Hold.TURN)
            if self._has_left and not self.holds:
                self.end("")
        except ProtocolError as error:
            self.end(str(error))
        except Exception:
            log.exception("mqtt %s: a packet could not be handled", self.peer)
            self.end("an error of ours")

    # Reading more slowly.

    def hold(self, why: Hold) -> None:
        """Reads nothing more until every reason is released, and handles no packet that was read already."""
        if not self.holds and not self.ending:
            self._transport.pause_reading()
        self.holds.add(why)

    def release(self, why: Hold) -> None:
        """The reason is gone; releasing what was not held changes nothing."""
        if why not in self.holds:
            return
        self.holds.remove(why)
        if not self.holds and not self.ending:
            self._transport.resume_reading()
            self._loop.call_soon(self._read_on)  # not within whatever released it

    def _check_silence(self) -> None:
        """Ends a peer that is silent for too long; while we do not listen it is not silent."""
        now = self._loop.time()
        if self.holds - {Hold.WRITING}:
            self._heard_at = now
        left = self._heard_at + self._silence_s - now
        if left <= 0:
            self.end("silent for 1.5 times its keep-alive")
        else:
            self._set_timer(self._loop.call_later(left, self._check_silence))

    # What is written in one turn of the loop leaves in one piece.

    @property
    def congested(self) -> bool:
        """More is written than the peer reads: what may be lost is not to be written now."""
        return Hold.WRITING in self.holds

    def write(self, data: bytes) -> None:
        """Sends at the end of this turn of the loop; nothing when the connection is ending."""
        if self.ending:
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def end(self, reason: str) -> None:
        """Sends what was written and closes; cut off when the peer does not take it."""
        if self.ending:
            return
        if reason:
            log.info("mqtt %s: closed: %s", self.peer, reason)
        self._flush()
        self.ending = True
        self._set_timer(self._loop.call_later(CLOSE_SECONDS, self._transport.abort))
        self._transport.close()

    def cut_off(self, reason: str) -> None:
        """Closes without waiting for anything."""
        self.end(reason)
        self._transport.abort()

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and not self._transport.is_closing():
            self._transport.write(b"".join(out))

    def _set_timer(self, timer: asyncio.TimerHandle | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timer
