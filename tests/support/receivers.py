"""What messages are sent to: a real SMTP server, and a webhook receiver that verifies with the reference library."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller
from anyio.from_thread import start_blocking_portal
from standardwebhooks.webhooks import Webhook

from tests.support.ports import free_port


class Inbox:
    """Mails that came; `refuse` is what the server answers instead of taking one, `refused` to recipients."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.refuse = ""
        self.refused: dict[str, str] = {}

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.refuse:
            return self.refuse
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))  # type: ignore[arg-type]
        return "250 taken"


@contextmanager
def smtp_server() -> Iterator[tuple[Inbox, int]]:
    """Yields the inbox and its port."""
    inbox, port = Inbox(), free_port()
    controller = Controller(inbox, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        yield inbox, port
    finally:
        controller.stop()


@dataclass
class Hook:
    """Requests that came: (verified body, webhook-id). `status` and `location` are what is answered."""

    url: str = ""
    secret: str = ""
    status: int = 200
    location: str = ""
    body: bytes = b"ok"
    received: list[tuple[Any, str]] = field(default_factory=list)
    requests: int = 0
    drip_s: float = 0.0
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    """Requests wait for it; it is set at first."""

    def __post_init__(self) -> None:
        self.answering.set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        original = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = await reader.readexactly(int(headers["content-length"]))
        self.requests += 1
        await self.answering.wait()
        if self.secret:
            signed = {name.lower(): value for name, value in original.items()}
            self.received.append((Webhook(self.secret).verify(body.decode(), signed), signed["webhook-id"]))
        more = f"location: {self.location}\r\n" if self.location else ""
        writer.write(f"HTTP/1.1 {self.status} X\r\n{more}content-length: {len(self.body)}\r\n\r\n".encode())
        if self.drip_s:
            for byte in self.body:
                writer.write(bytes((byte,)))
                await asyncio.sleep(self.drip_s)
        else:
            writer.write(self.body)
        writer.close()


@asynccontextmanager
async def webhook_receiver(host: str = "127.0.0.1") -> AsyncIterator[Hook]:
    """A receiver on loopback."""
    hook = Hook()
    server = await asyncio.start_server(hook.handle, host, 0)
    hook.url = f"http://{host}:{server.sockets[0].getsockname()[1]}/hook"
    async with server:
        yield hook


@contextmanager
def webhook_server(host: str) -> Iterator[Hook]:
    """As `webhook_receiver`, on a thread of its own: for tests that block."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(webhook_receiver(host)) as hook:
        yield hook
