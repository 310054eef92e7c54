"""The job `send_email`: a mail that another service made, such as a report."""

from __future__ import annotations

from email.message import EmailMessage

from aemos.v1.job_pb2 import EmailAttachment, SendEmail
from aemos_core.jobs import Job
from aemos_core.outbox_senders import send_receipt
from aemos_core.redis_link import RedisClient

from aemos_notify.channels import MOST_RECIPIENTS, EmailChannel, Failed, envelope
from aemos_notify.dispatch import TryAgain

_SENT_SECONDS = 24 * 60 * 60


class MailJob:
    """Sends a mail; a job that comes again finds that it was sent, unless that was forgotten with Redis."""

    def __init__(self, mail: EmailChannel, sender: str, redis: RedisClient, jobs_redis: RedisClient) -> None:
        self._mail = mail
        self._sender = sender
        self._redis = redis
        self._jobs_redis = jobs_redis

    async def __call__(self, payload: bytes, job: Job) -> None:
        wanted = SendEmail.FromString(payload)
        sent = f"email-sent:{wanted.uuid}"
        if not await self._redis.get(sent):
            try:
                await self._mail.send_mail(compose(self._sender, wanted))
            except Failed as failed:
                if not failed.for_good:
                    raise TryAgain(str(failed)) from None
                # A dead letter: without the receipt its sender would take it for lost and send it again for ever.
                await send_receipt(self._jobs_redis, job)
                raise
            await self._redis.set(sent, "1", ex=_SENT_SECONDS)
        await send_receipt(self._jobs_redis, job)


def compose(sender: str, wanted: SendEmail) -> EmailMessage:
    """The mail: text, its HTML twin with the pictures in it, and files beside them."""
    mail = envelope(sender, list(wanted.to)[:MOST_RECIPIENTS], wanted.subject, wanted.uuid)
    mail.set_content(wanted.text or wanted.subject)
    if wanted.html:
        mail.add_alternative(wanted.html, subtype="html")
        html = mail.get_payload()[1]  # type: ignore[index]
        for picture in (a for a in wanted.attachments if a.content_id):
            main, sub = _type_of(picture)
            html.add_related(picture.content, main, sub, cid=f"<{picture.content_id}>")  # type: ignore[union-attr]
    for file in (a for a in wanted.attachments if not a.content_id):
        main, sub = _type_of(file)
        mail.add_attachment(file.content, main, sub, filename=file.file_name)
    return mail


def _type_of(attachment: EmailAttachment) -> tuple[str, str]:
    main, _, sub = attachment.media_type.partition("/")
    return (main, sub) if sub else ("application", "octet-stream")
