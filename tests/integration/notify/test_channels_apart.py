"""Mail and webhooks do not wait for each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from aemos.v1.subscription_pb2 import Subscription
from aemos_core.announce import Announcer
from aemos_core.database import open_database
from aemos_notify import channels, subscription_store

from tests.support.notify import Notify, announcement, running_notify
from tests.support.receivers import smtp_server, webhook_receiver
from tests.support.redis_server import until

SECRET = "whsec_bm90aWZ5bm90aWZ5bm90aWZ5bm90aWZ5"


async def subscribe(notify: Notify, channel: str, *targets: str) -> None:
    async with open_database(notify.settings.database_of("notify")) as database, database.write() as connection:
        for target in targets:
            draft = Subscription(name="s", channel=channel, target=target, enabled=True, secret=SECRET, hourly_limit=60)
            await subscription_store.create(connection, 1, draft)


async def test_mail_goes_while_every_webhook_hangs(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Webhooks that do not answer before their deadline have all that there is for webhooks, and mail arrives."""
    monkeypatch.setattr(channels, "WEBHOOK_SECONDS", 25.0)
    with smtp_server() as (inbox, port):
        async with webhook_receiver() as hook:
            settings = {"smtp_host": "127.0.0.1", "smtp_port": port, "smtp_security": "none"}
            async with running_notify(
                redis_url, tmp_path, worker=True, webhook_networks="127.0.0.1/32", **settings
            ) as notify:
                hook.answering.clear()
                try:
                    await subscribe(notify, "webhook", *[hook.url] * 4)
                    await Announcer(notify.redis).announce([announcement("first")])
                    threads = notify.settings.notify_worker_threads
                    await until(lambda: hook.requests == threads, 10, "webhooks to hang")
                    await subscribe(notify, "email", "ops@example.org")
                    await Announcer(notify.redis).announce([announcement("second")])
                    await until(lambda: len(inbox.mails) == 1, 10, "a mail")
                    assert hook.requests == threads
                finally:
                    hook.answering.set()
