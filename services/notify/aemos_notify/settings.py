"""Settings of the notify service and its worker."""

from __future__ import annotations

from typing import Literal

from aemos_core.settings import ServiceSettings
from pydantic import Field

from aemos_notify.channels import MailServer


class NotifySettings(ServiceSettings):
    """What notify reads beside what every process reads."""

    socketio_port: int = Field(3001, ge=1, le=65535, description="Socket.IO port, WebSocket only.")
    socketio_clients: int = Field(20_000, ge=1, description="Connections of one process; more are answered 503.")
    notify_grpc_port: int = Field(50054, ge=1, le=65535, description="gRPC port of notify.")
    smtp_host: str = Field("", description="Mail server. Unset: mails are not sent, and listed as dead.")
    smtp_port: int = Field(587, ge=1, le=65535, description="Port of the mail server.")
    smtp_user: str = Field("", description="User at the mail server; empty: none.")
    smtp_password: str = Field("", description="Its password.")
    smtp_security: Literal["none", "starttls", "tls"] = Field("starttls", description="none, starttls or tls.")
    mail_from: str = Field("AEMOS <aemos@localhost>", description="Sender of mails.")
    webhook_networks: str = Field(
        "", description="Networks that webhooks may reach though they are not public, such as 10.1.0.0/16,127.0.0.1/32."
    )
    notify_worker_threads: int = Field(
        20, ge=1, le=200, description="Messages of each channel that a notify worker sends at a time."
    )

    @property
    def mail_server(self) -> MailServer:
        """Where mails go."""
        login = (self.smtp_user, self.smtp_password)
        return MailServer(self.smtp_host, self.smtp_port, self.mail_from, *login, self.smtp_security)
