"""The worker as it is wired: mail and webhooks do not wait for each other, and both outlast outages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aemos.v1.subscription_pb2 import Subscription
from aemos_core.announce import Announcer
from aemos_core.database import open_database
from aemos_core.errors import unavailable
from aemos_notify import channels, store, subscription_store, wiring

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


def away(work: Callable[..., Any], times: int) -> Callable[..., Any]:
    """The query, of a database that is away so many times."""
    left = list(range(times))

    async def query(*arguments: Any, **named: Any) -> Any:
        if left:
            left.pop()
            raise unavailable("the database did not answer")
        return await work(*arguments, **named)

    return query


async def test_an_outage_costs_no_delivery(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is away for longer than a job is retried delays the ledger and what follows from it."""
    for name in ("RECORD_NOTIFICATIONS", "DELIVER_EMAIL"):
        monkeypatch.setattr(wiring, name, replace(getattr(wiring, name), max_retries=1, min_backoff_ms=20))
    monkeypatch.setattr(store, "reached", away(store.reached, 3))
    monkeypatch.setattr(subscription_store, "find", away(subscription_store.find, 3))
    with smtp_server() as (inbox, port):
        settings = {"smtp_host": "127.0.0.1", "smtp_port": port, "smtp_security": "none"}
        async with running_notify(redis_url, tmp_path, worker=True, **settings) as notify:
            await subscribe(notify, "email", "ops@example.org")
            await Announcer(notify.redis).announce([announcement("outage")])
            await until(lambda: len(inbox.mails) == 1, 10, "a mail")
