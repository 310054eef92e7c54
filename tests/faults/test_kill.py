"""kill -9 under load: nothing acknowledged is lost, nothing is doubled, everything is judged."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.faults.checker import check, wait_until_settled, wait_until_told
from tests.faults.installation import Installation
from tests.faults.load import History, load
from tests.support.redis_server import until

VICTIMS = ("aemos_ingest", "aemos_gateway", "aemos_rules worker")
DEVICES = 9
BACK_SECONDS = 15.0


def acknowledged(histories: list[History]) -> int:
    return sum(len(history.acknowledged) for history in histories)


def more_than(histories: list[History], before: int, readings: int = 200) -> Callable[[], bool]:
    return lambda: acknowledged(histories) >= before + readings


@pytest.mark.parametrize("victim", VICTIMS)
async def test_what_was_acknowledged_outlives_a_kill(broken: Installation, victim: str) -> None:
    """Killed twice while devices send; back within 15 s; afterwards each reading is there once, judged, and told."""
    stack = broken.stack
    async with load(stack, broken.fresh(DEVICES)) as histories:
        killed: set[int] = set()
        for _ in range(2):
            before = acknowledged(histories)
            await until(more_than(histories, before), BACK_SECONDS, "readings before the kill")
            await until(lambda: bool(set(stack.pids(victim)) - killed), BACK_SECONDS, f"{victim} runs")
            (pid,) = set(stack.pids(victim)) - killed
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
            before = acknowledged(histories)
            await until(more_than(histories, before), BACK_SECONDS, f"readings after {victim} was killed")
    wait_until_settled(broken.rows, BACK_SECONDS, broken.queue_url)
    stored, changes = check(histories, broken.rows)
    assert stored >= acknowledged(histories)
    wait_until_told(histories, broken.rows, changes, BACK_SECONDS)
