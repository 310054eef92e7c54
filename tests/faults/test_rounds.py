"""Rounds of faults under load. A failure names the seed that makes the same schedule again: SEED=... ROUNDS=..."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from tests.faults.checker import check, wait_until_settled
from tests.faults.installation import Installation
from tests.faults.load import History, load
from tests.faults.nemesis import Fault, schedule

ROUNDS = int(os.environ.get("ROUNDS", "10"))
SEED = os.environ.get("SEED", str(int(time.time())))
FAULTS = 5
DEVICES = 12
RECOVER_SECONDS = 60.0
MEASURED = Path(__file__).parents[2] / "docs" / "measured" / "faults.md"
_HEAD = """# Faults

`make test-faults` on {day}, {cores} cores, seed {seed}: {rounds} rounds. In each, {devices} devices send one reading
after another over HTTP, MQTT (QoS 1) and CoAP (confirmable) while faults come and go; every reading changes its
device's state. Afterwards every acknowledged reading is stored exactly once, nothing unsent is, ids are in the order
sent, every change of state happened once, and queue and outbox are empty.

| round | faults (seconds) | sent | acknowledged | stored | changes judged | seconds to recover |
|---|---|---|---|---|---|---|
"""
_table: list[str] = []


@pytest.mark.parametrize("number", range(ROUNDS))
async def test_round(broken: Installation, number: int) -> None:
    """Whatever happens to processes, servers, connections and disk: nothing acknowledged is lost or doubled."""
    faults = schedule(f"{SEED}-{number}", FAULTS, broken.disk.is_small)
    print(f"SEED={SEED} round {number}:", *(f"{fault.name} {fault.seconds:.1f} s," for fault in faults))
    async with load(broken.stack, broken.fresh(DEVICES)) as histories:
        for fault in faults:
            await _inflict(broken, fault)
        recovered = await _recovery(histories)
    judged = await asyncio.to_thread(wait_until_settled, broken.rows, RECOVER_SECONDS, broken.queue_url)
    stored, changes = await asyncio.to_thread(check, histories, broken.rows)
    _report(number, faults, histories, (stored, changes), recovered + judged)


async def _inflict(broken: Installation, fault: Fault) -> None:
    await asyncio.sleep(fault.after_s)
    with fault.inflict(broken):
        await asyncio.sleep(fault.seconds)


async def _recovery(histories: list[History]) -> float:
    """Seconds until every device is acknowledged again."""
    began = time.monotonic()
    before = [len(history.acknowledged) for history in histories]
    while any(len(h.acknowledged) == count for h, count in zip(histories, before, strict=True)):
        assert time.monotonic() - began < RECOVER_SECONDS, "a device is not acknowledged any more"
        await asyncio.sleep(0.1)
    return time.monotonic() - began


def _report(
    number: int, faults: list[Fault], histories: list[History], found: tuple[int, int], recovered: float
) -> None:
    sent, acknowledged = (sum(len(getattr(h, what)) for h in histories) for what in ("sent", "acknowledged"))
    named = ", ".join(f"{fault.name} ({fault.seconds:.0f})" for fault in faults)
    cells = (number + 1, named, f"{sent:,}", f"{acknowledged:,}", f"{found[0]:,}", f"{found[1]:,}", f"{recovered:.1f}")
    _table.append(f"| {' | '.join(map(str, cells))} |\n")
    head = _HEAD.format(day=time.strftime("%Y-%m-%d"), cores=os.cpu_count(), seed=SEED, rounds=ROUNDS, devices=DEVICES)
    MEASURED.parent.mkdir(parents=True, exist_ok=True)
    MEASURED.write_text(head + "".join(_table), encoding="utf-8")
