"""CoAP by hand: datagrams that no library would send, and what comes back for them."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from aiocoap import Message

CON, NON, ACK, RST = range(4)
GET, POST = 1, 2
PATH, FORMAT, QUERY, OBSERVE, BLOCK1, SIZE1 = 11, 12, 15, 6, 27, 60
READINGS_PATH = [(PATH, part) for part in (b"api", b"v1", b"datastreams", b"token")]
DEADLINE_S = 5.0

Options = Sequence[tuple[int, bytes]]


def datagram(
    code: int,
    options: Options = (),
    payload: bytes = b"",
    *,
    kind: int = CON,
    mid: int = 1,
    token: bytes = b"\x01",
) -> bytes:
    """A message; its options are put in order and nothing is checked."""
    data = bytes((0x40 | kind << 4 | len(token), code)) + mid.to_bytes(2) + token
    number = 0
    for option, value in sorted(options, key=lambda item: item[0]):
        delta, more_delta = _nibble(option - number)
        length, more_length = _nibble(len(value))
        data += bytes((delta << 4 | length,)) + more_delta + more_length + value
        number = option
    return data + (b"\xff" + payload if payload else b"")


def _nibble(value: int) -> tuple[int, bytes]:
    if value < 13:
        return value, b""
    return (13, bytes((value - 13,))) if value < 269 else (14, (value - 269).to_bytes(2))


def reading(payload: bytes, *, device: bytes, extra: Options = (), code: int = POST, **fields: Any) -> bytes:
    """A POST of a reading with a device's token."""
    return datagram(code, [*READINGS_PATH, (QUERY, b"token=" + device), *extra], payload, **fields)


def notifications(device_uuid: str, *, device: bytes, extra: Options = (), **fields: Any) -> bytes:
    """A GET of a device's notifications."""
    path = [(PATH, part) for part in (b"api", b"v1", b"devices", device_uuid.encode(), b"notifications")]
    return datagram(GET, [*path, (QUERY, b"token=" + device), *extra], **fields)


def uint(value: int) -> bytes:
    """An option's number in as few bytes as it needs."""
    return value.to_bytes((value.bit_length() + 7) // 8)


def block1(number: int, more: bool, exponent: int = 6) -> tuple[int, bytes]:
    """The Block1 option."""
    return BLOCK1, uint(number << 4 | more << 3 | exponent)


class RawClient(asyncio.DatagramProtocol):
    """A UDP socket that keeps what it received."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue()
        self.transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.received.put_nowait(data)

    def send(self, data: bytes) -> None:
        self.transport.sendto(data)

    async def receive(self) -> bytes:
        """The next datagram."""
        async with asyncio.timeout(DEADLINE_S):
            return await self.received.get()

    async def message(self) -> Message:
        """The next datagram, decoded."""
        return Message.decode(await self.receive())

    async def ask(self, data: bytes) -> Message:
        """Sends, and the next message."""
        self.send(data)
        return await self.message()

    async def observe(self, device_uuid: str, *, device: bytes, **fields: Any) -> Message:
        """Registers for a device's notifications, and the first answer."""
        return await self.ask(notifications(device_uuid, device=device, extra=[(OBSERVE, b"")], **fields))

    async def is_silent(self) -> bool:
        """Nothing was answered so far: what comes next is the reset that answers a ping sent now."""
        self.send(b"\x40\x00\xff\xfe")
        return await self.receive() == b"\x70\x00\xff\xfe"


@asynccontextmanager
async def raw_client(
    port: int, host: str = "127.0.0.1", local: tuple[str, int] | None = None
) -> AsyncIterator[RawClient]:
    """A client connected to the edge, from an address of its own choice or any."""
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_datagram_endpoint(RawClient, local_addr=local, remote_addr=(host, port))
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    try:
        yield client
    finally:
        transport.close()
