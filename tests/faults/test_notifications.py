"""kill -9 during a stream of notifications: every subscribed client ends with each exactly once, in order."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.installation import Installation
from tests.support.notifications import Output, announce, client, follow, is_kept, organization_of, persistent
from tests.support.redis_server import until

COUNT = 10_000
PAUSE_S = 0.01
"""Between twenty of them: the stream takes about ten seconds."""
BACK_S = 30.0
MOST_REPEATED = 200
"""Of what was on its way to a device when its gateway was killed: QoS 1 is at least once."""
VICTIMS = ("aemos_notify", "aemos_gateway", "redis-server")


async def kill(broken: Installation, victim: str) -> None:
    """kill -9; returns when it runs again."""
    if victim == "redis-server":
        await asyncio.to_thread(broken.redis.kill)
        await asyncio.to_thread(broken.redis.start)
        return
    (pid,) = broken.stack.pids(victim)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: broken.stack.pids(victim) not in ([], [pid]), BACK_S, f"{victim} runs again")


@pytest.mark.parametrize("victim", VICTIMS)
async def test_each_exactly_once(broken: Installation, tmp_path: Path, victim: str) -> None:
    """Killed twice in a stream of 10,000; browsers go on with the last id they heard, a device with its session."""
    stack = broken.stack
    device = stack.demo["devices"][broken.fresh(1)[0]]
    subject, broader = {"deviceUuid": device["uuid"]}, {"organizationId": organization_of(stack)}
    with (
        client(tmp_path / "subject", *follow(stack, subject)) as one,
        client(tmp_path / "broader", *follow(stack, broader)) as all_,
        client(tmp_path / "mqtt", *persistent(stack, device)) as kept,
    ):
        for browser in (one, all_):
            await until(lambda b=browser: '"ok":true' in b.text(), BACK_S, "subscribed")  # type: ignore[misc]
        await until(lambda: is_kept(stack, device), BACK_S, "subscribed")
        stream = asyncio.create_task(announce(stack, device, range(COUNT), pause=PAUSE_S))
        for part in (COUNT // 4, COUNT // 2):
            await until(lambda n=part: one.heard > n, 2 * BACK_S, f"{part} notifications")  # type: ignore[misc]
            await kill(broken, victim)
        await stream
        for found in (one, all_, kept):
            await until(lambda f=found: COUNT - 1 in f.numbers()[-1:], BACK_S, f"{_tail(found)}")  # type: ignore[misc]
        assert one.numbers() == list(range(COUNT))
        assert all_.numbers()[-COUNT:] == list(range(COUNT))
        assert _once(kept.numbers()) == list(range(COUNT))
        assert len(kept.numbers()) - COUNT <= MOST_REPEATED


def _tail(found: Output) -> str:
    return f"{len(found.numbers())} heard: {found.text()[-300:]}"


def _once(numbers: Sequence[int]) -> list[int]:
    """Without what came again: what is left must still be in order."""
    return list(dict.fromkeys(numbers))
