"""E-mail and webhooks against a real SMTP server and a receiver that verifies signatures."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from aemos.v1.job_pb2 import EmailAttachment, SendEmail
from aemos_core.errors import AemosError
from aemos_notify.channels import EmailChannel, Failed, Letter, MailServer, WebhookChannel, open_webhooks
from aemos_notify.mail_job import compose
from aemos_notify.public_net import PublicNet, networks
from aemos_notify.templates import EXAMPLE, Message, json_body

from tests.support.receivers import Hook, smtp_server, webhook_receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_c2VjcmV0c2VjcmV0c2VjcmV0"


@pytest.fixture
async def webhooks() -> AsyncIterator[WebhookChannel]:
    async with open_webhooks(PublicNet(networks(["127.0.0.0/8"]))) as channel:
        yield channel


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    async with webhook_receiver() as receiver:
        yield receiver


def letter(hook: Hook, *secrets: str) -> Letter:
    return Letter("msg_1_2-0", hook.url, json_body("", EXAMPLE), secrets or (SECRET,))


async def test_a_webhook_is_signed(webhooks: WebhookChannel, hook: Hook) -> None:
    """The reference library verifies it, with the new secret and with the old one."""
    for secret in (SECRET, OLD_SECRET):
        hook.secret = secret
        assert await webhooks.send(letter(hook, SECRET, OLD_SECRET)) == "200 ok"
    assert hook.received == [(EXAMPLE, "msg_1_2-0")] * 2


@pytest.mark.parametrize(("status", "for_good"), [(500, False), (404, False), (410, True), (302, False)])
async def test_what_is_not_taken_is_told(webhooks: WebhookChannel, hook: Hook, status: int, for_good: bool) -> None:
    """With what was answered; a redirect is not followed."""
    hook.status, hook.location = status, "http://127.0.0.1:1/inside"
    with pytest.raises(Failed) as failed:
        await webhooks.send(letter(hook))
    assert (str(failed.value), failed.value.for_good, hook.requests) == (f"{status} ok", for_good, 1)


async def test_an_answer_has_bounds(webhooks: WebhookChannel, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    """In size and in time: what drips in is cut."""
    hook.body = b"x" * 10_000_000
    assert len(await webhooks.send(letter(hook))) == 500
    monkeypatch.setattr("aemos_notify.channels.WEBHOOK_SECONDS", 0.3)
    hook.body, hook.drip_s = b"x" * 1000, 0.05
    with pytest.raises(Failed, match="TimeoutError"):
        await webhooks.send(letter(hook))


async def test_a_mail_arrives() -> None:
    """With its subject and text, and the same Message-ID however often it is sent."""
    with smtp_server() as (inbox, port):
        channel = EmailChannel(MailServer("127.0.0.1", port, "AEMOS <a@example.org>", security="none"))
        for _ in range(2):
            answer = await channel.send(
                Letter("msg_1", "b@example.org, c@example.org", Message("Hot", "It is <hot>.\n"))
            )
            assert "taken" in answer
    first, second = inbox.mails
    assert (first["Subject"], first["To"]) == ("Hot", "b@example.org, c@example.org")
    plain, html = ("".join(part.get_content().split()) for part in first.iter_parts())
    assert (plain, html) == ("Itis<hot>.", "<pre>Itis&lt;hot&gt;.</pre>")
    assert first["Message-ID"] == second["Message-ID"] == "<msg_1@example.org>"


@pytest.mark.parametrize(
    "target",
    ["not an address", "a@b.org,,c@d.org", "a@b.org\r\nBcc: c", "a@b.org," * 20 + "a@b.org", "a:b@c.org", "a@b..org"],
)
async def test_what_is_no_address(target: str) -> None:
    """Is refused when it is saved; at most 20 addresses."""
    with pytest.raises(AemosError) as refused:
        await EmailChannel(MailServer("", 25, "a@example.org")).check_target(target)
    assert [error.loc for error in refused.value.errors] == ["target"]


async def test_what_the_mail_server_refuses() -> None:
    """5xx is for good, 4xx and silence are not; without a server it is for good too."""
    sent = Letter("msg_1", "b@example.org", Message("Hot", "hot"))
    with smtp_server() as (inbox, port):
        channel = EmailChannel(MailServer("127.0.0.1", port, "a@example.org", security="none"))
        for answer, for_good in (("550 no such user", True), ("451 later", False)):
            inbox.refuse = answer
            with pytest.raises(Failed) as failed:
                await channel.send(sent)
            assert failed.value.for_good is for_good
    for host, for_good in (("", True), ("127.0.0.1", False)):
        with pytest.raises(Failed) as failed:
            await EmailChannel(MailServer(host, port, "a@example.org", security="none")).send(sent)
        assert failed.value.for_good is for_good


async def test_a_recipient_that_is_refused() -> None:
    """Is named beside what the others got; when there is no other, the mail failed, for good with a 5xx."""
    with smtp_server() as (inbox, port):
        channel = EmailChannel(MailServer("127.0.0.1", port, "a@example.org", security="none"))
        for answer, for_good in (("550 no such user", True), ("450 later", False)):
            inbox.refused = {"no@example.org": answer}
            taken = await channel.send(Letter("msg_1", "b@example.org, no@example.org", Message("Hot", "hot")))
            assert taken == f"taken; not to no@example.org: {answer}"
            with pytest.raises(Failed, match=f"^no@example.org: {answer}$") as failed:
                await channel.send(Letter("msg_1", "no@example.org", Message("Hot", "hot")))
            assert failed.value.for_good is for_good
    assert len(inbox.mails) == 2


def test_a_report_has_its_pictures_in_it() -> None:
    """Text, its HTML twin with pictures by content id, and files beside them."""
    png = EmailAttachment(content_id="chart-1", media_type="image/png", content=b"\x89PNG")
    csv = EmailAttachment(file_name="report.csv", media_type="text/csv", content=b"a,b\n")
    wanted = SendEmail(uuid="u", to=["a@example.org"], subject="Report", html='<img src="cid:chart-1">', text="t")
    wanted.attachments.extend([png, csv])
    mail = compose("AEMOS <a@example.org>", wanted)
    kinds = [part.get_content_type() for part in mail.walk()]
    assert kinds == [
        "multipart/mixed",
        "multipart/alternative",
        "text/plain",
        "multipart/related",
        "text/html",
        "image/png",
        "text/csv",
    ]
    assert json.dumps(mail.as_string()).count("chart-1") == 2
