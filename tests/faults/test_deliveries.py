"""kill -9 of the notify worker: every notification reaches its target, and what comes twice comes with the same id."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.receivers import Hook, webhook_server
from tests.support.stack import Stack, eventually, running

NOTIFICATIONS, KILLS = 1_000, 4  # `aemos up` gives up at the fifth within a minute
PROGRESS_SECONDS, END_SECONDS = 60.0, 120.0
WORKER = "aemos_notify worker"


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> Iterator[tuple[Stack, Hook]]:
    with ExitStack() as opened:
        hook = opened.enter_context(webhook_server("127.0.0.9"))
        settings = {
            "AEMOS_DATABASE_URL": database_url,
            "AEMOS_DEMO_DEVICES": "1",
            "AEMOS_WEBHOOK_NETWORKS": "127.0.0.9/32",
        }
        yield opened.enter_context(running(tmp_path / "var", **settings)), hook


def test_no_delivery_is_lost_while_the_worker_is_killed(world: tuple[Stack, Hook]) -> None:
    """Four times in the middle of 1,000 deliveries: each arrives and is listed as sent, however often with one id."""
    stack, hook = world
    body = {"name": "all", "channel": "webhook", "target": hook.url, "filter": {"eventTypes": ["counted"]}}
    status, made = stack.call("POST", "/api/v1/subscriptions", {**body, "hourlyLimit": 3_600})
    assert status == 201, made
    hook.secret = made["secret"]
    with ThreadPoolExecutor(1) as thread:
        publishing = thread.submit(_publish, stack)
        _kill_again_and_again(stack, hook)
        publishing.result()
    eventually(lambda: len(_statuses(stack)) == NOTIFICATIONS and set(_statuses(stack)) == {"sent"}, END_SECONDS)
    ids = {uid: received["metadata"]["number"] for received, uid in hook.received}
    assert sorted(ids.values()) == list(range(NOTIFICATIONS))
    twice = [uid for uid, times in Counter(uid for _, uid in hook.received).items() if times > 1]
    print(f"{KILLS} kills, {NOTIFICATIONS} deliveries, {len(twice)} that came twice")


def _publish(stack: Stack) -> None:
    for number in range(NOTIFICATIONS):
        body = {"uuid": f"n-{number}", "type": "counted", "metadata": {"number": number}}
        status, answer = stack.call("POST", "/api/v1/notifications", body)
        assert status < 300, answer


def _kill_again_and_again(stack: Stack, hook: Hook) -> None:
    chance = random.Random(time.time_ns())
    for _ in range(KILLS):
        wanted = min(NOTIFICATIONS, len(hook.received) + chance.randrange(1, 200))
        eventually(lambda: len(hook.received) >= wanted, PROGRESS_SECONDS)  # noqa: B023
        (pid,) = eventually(lambda: stack.pids(WORKER), PROGRESS_SECONDS)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: pid not in stack.pids(WORKER), PROGRESS_SECONDS)  # noqa: B023


def _statuses(stack: Stack) -> list[str]:
    return [d["status"] for d in stack.call("GET", "/api/v1/deliveries?pageSize=1000")[1]["deliveries"]]
