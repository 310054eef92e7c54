"""How a message leaves: one class for each channel. Each answers what the other side said, or raises Failed."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import parseaddr
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiosmtplib
import httpx
from aemos_core.errors import invalid
from aemos_core.jobs import DELIVER_EMAIL, SEND_DELIVERY
from standardwebhooks.webhooks import Webhook

from aemos_notify import templates
from aemos_notify.public_net import NotPublic, PublicNet, networks
from aemos_notify.templates import Message

JOBS = {"email": DELIVER_EMAIL, "webhook": SEND_DELIVERY}
"""The job that sends by a channel, each on a queue of its own; a channel that is not here shares the webhooks'."""
WEBHOOK_SECONDS = 5.0
MAIL_SECONDS = 20.0
MOST_RECIPIENTS = 20
_MOST_ANSWER = 64 * 1024
_SHOWN = 500
# Without what is more than an address: "a:b@example.org" would go to b.
_ADDRESS = re.compile(r"[^\s@,<>\"():;\[\]\\]{1,64}@(?=.{1,253}\Z)[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


class Failed(Exception):
    """It was not taken; the text says what the other side answered. `for_good`: it never will be."""

    def __init__(self, answer: str, *, for_good: bool = False) -> None:
        super().__init__(answer[:_SHOWN])
        self.for_good = for_good


@dataclass(frozen=True, slots=True)
class Letter:
    """What is to be sent where. `uid` is the same for every attempt, `secrets` sign a webhook's."""

    uid: str
    target: str
    message: Message
    secrets: Sequence[str] = ()


class ChannelSender(Protocol):
    """One way out, and all that is particular to it."""

    signs: bool
    """Whether a subscription has a secret that signs its messages."""

    async def check_target(self, target: str) -> None:
        """INVALID when nothing may ever be sent there."""

    def message(self, subject: str, body: str, notification: Mapping[str, Any]) -> Message:
        """What these templates, or the default ones when empty, make of a notification; INVALID names one."""

    async def send(self, letter: Letter) -> str:
        """What the other side said; Failed when it did not take it."""


class WebhookChannel:
    """POST of JSON, signed by the Standard Webhooks specification; no redirect is followed."""

    signs = True

    def __init__(self, client: httpx.AsyncClient, net: PublicNet) -> None:
        self._client = client
        self._net = net

    async def check_target(self, target: str) -> None:
        """The host must exist and be public."""
        if not target.startswith(("https://", "http://")):
            raise invalid("target", "must be an http or https URL")
        try:
            parts = urlsplit(target)
            if not parts.hostname or parts.username is not None:
                raise NotPublic("the URL must name a host, and no user")
            await self._net.addresses(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        except NotPublic as error:
            raise invalid("target", str(error), "not_public") from None
        except (OSError, TimeoutError, ValueError):
            raise invalid("target", "the host cannot be found", "unknown_host") from None

    def message(self, subject: str, body: str, notification: Mapping[str, Any]) -> Message:
        """JSON, without a subject."""
        return templates.json_body(body, notification)

    async def send(self, letter: Letter) -> str:
        """2xx is taken; 410 Gone never will be."""
        at = datetime.now(UTC)
        signatures = [Webhook(secret).sign(letter.uid, at, letter.message.body) for secret in letter.secrets]
        headers = {
            "content-type": "application/json",
            "webhook-id": letter.uid,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(signatures),
        }
        try:
            async with asyncio.timeout(WEBHOOK_SECONDS):
                status, text = await self._post(letter, headers)
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise Failed(f"{type(error).__name__}: {error}") from None
        if not 200 <= status < 300:
            raise Failed(f"{status} {text}", for_good=status == httpx.codes.GONE)
        return f"{status} {text}"[:_SHOWN]

    async def _post(self, letter: Letter, headers: dict[str, str]) -> tuple[int, str]:
        content = letter.message.body.encode()
        async with self._client.stream("POST", letter.target, content=content, headers=headers) as answer:
            received = bytearray()
            async for chunk in answer.aiter_raw():
                received += chunk
                if len(received) > _MOST_ANSWER:
                    break
            return answer.status_code, received[:_SHOWN].decode("utf-8", "replace").strip()


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where mail goes. `security`: "none", "starttls" or "tls"."""

    host: str
    port: int
    sender: str
    user: str = ""
    password: str = ""
    security: str = "starttls"


class EmailChannel:
    """Mail by SMTP, plain text with an HTML twin."""

    signs = False

    def __init__(self, server: MailServer) -> None:
        self._server = server

    async def check_target(self, target: str) -> None:
        """Addresses separated by commas; whether they exist only their server knows."""
        addresses = _addresses(target)
        if len(addresses) > MOST_RECIPIENTS or not all(map(_ADDRESS.fullmatch, addresses)):
            raise invalid("target", f"must be 1 to {MOST_RECIPIENTS} e-mail addresses separated by commas")

    def message(self, subject: str, body: str, notification: Mapping[str, Any]) -> Message:
        """Plain text."""
        return templates.text(subject, body, notification)

    async def send(self, letter: Letter) -> str:
        """What the mail server said."""
        mail = envelope(self._server.sender, _addresses(letter.target), letter.message.subject, letter.uid)
        mail.set_content(letter.message.body)
        mail.add_alternative(f"<pre>{html.escape(letter.message.body)}</pre>", subtype="html")
        return await self.send_mail(mail)

    async def send_mail(self, mail: EmailMessage) -> str:
        """Sends a mail that is complete; the answer names recipients that were refused. Failed when nobody gets it, for
        good when that is a 5xx."""
        server = self._server
        if not server.host:
            raise Failed("no mail server is set: AEMOS_SMTP_HOST", for_good=True)
        try:
            async with asyncio.timeout(MAIL_SECONDS):
                refused, answer = await aiosmtplib.send(
                    mail,
                    hostname=server.host,
                    port=server.port,
                    username=server.user or None,
                    password=server.password or None,
                    use_tls=server.security == "tls",
                    start_tls=server.security == "starttls",
                    timeout=MAIL_SECONDS,
                )
        except aiosmtplib.SMTPResponseException as error:
            raise Failed(f"{error.code} {error.message}", for_good=error.code >= 500) from None
        except aiosmtplib.SMTPRecipientsRefused as error:
            answers = [f"{one.recipient}: {one.code} {one.message}" for one in error.recipients]
            raise Failed("; ".join(answers), for_good=all(one.code >= 500 for one in error.recipients)) from None
        except (TimeoutError, OSError, aiosmtplib.SMTPException) as error:
            raise Failed(f"{type(error).__name__}: {error}") from None
        return "; ".join([answer, *(f"not to {one}: {code} {why}" for one, (code, why) in refused.items())])[:_SHOWN]


def envelope(sender: str, recipients: Iterable[str], subject: str, uid: str) -> EmailMessage:
    """A mail without its content. Its Message-ID is the same for every attempt, so that readers show it once."""
    mail = EmailMessage()
    mail["From"] = sender
    mail["To"] = ", ".join(recipients)
    mail["Subject"] = subject or "AEMOS"
    mail["Date"] = datetime.now(UTC)
    mail["Message-ID"] = f"<{uid}@{parseaddr(sender)[1].rpartition('@')[2]}>"
    return mail


def _addresses(target: str) -> list[str]:
    return [address.strip() for address in target.split(",")]


@asynccontextmanager
async def open_channels(mail: MailServer, webhook_networks: str) -> AsyncIterator[dict[str, ChannelSender]]:
    """Every channel by its name; a new one is a class above and a line here."""
    async with open_webhooks(PublicNet(networks(webhook_networks.split(",")))) as webhooks:
        yield {"email": EmailChannel(mail), "webhook": webhooks}


@asynccontextmanager
async def open_webhooks(net: PublicNet) -> AsyncIterator[WebhookChannel]:
    """The webhook channel, with connections of its own."""
    async with httpx.AsyncClient(transport=net.transport(), timeout=WEBHOOK_SECONDS, follow_redirects=False) as client:
        yield WebhookChannel(client, net)
