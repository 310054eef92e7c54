"""MariaDB's disk is full: nothing is acknowledged, everything lives, and goes on when there is room again."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from tests.faults.installation import Installation
from tests.faults.nemesis import FAULTS, SERVICES

REFUSED_SECONDS = 30.0
BACK_SECONDS = 20.0
FAT = "x" * 60_000


async def test_a_full_disk(broken: Installation) -> None:
    """503 with Retry-After until there is room; every reading that was acknowledged is there, once."""
    if not broken.disk.is_small:
        pytest.skip("a disk can be filled only by root, who may mount a small one")
    device = broken.stack.demo["devices"][broken.fresh(1)[0]]
    before = {process: broken.stack.pids(process) for process in SERVICES}
    sent, acknowledged = 0, []
    headers = {"Authorization": f"Bearer {device['token']}"}

    async def send(client: httpx.AsyncClient) -> httpx.Response:
        nonlocal sent
        sent += 1
        reading = {"value": f"{sent} {FAT}", "variableName": "note"}
        answer = await client.post("/api/v1/datastreams/token", json=reading)
        if answer.status_code == 201:
            acknowledged.append(sent)
        return answer

    async with httpx.AsyncClient(base_url=broken.stack.demo["httpUrl"], headers=headers, timeout=15) as client:
        assert (await send(client)).status_code == 201
        with FAULTS["disk full"](broken):
            deadline = time.monotonic() + REFUSED_SECONDS
            while (answer := await send(client)).status_code == 201:
                assert time.monotonic() < deadline, "the disk is not full"
            assert (answer.status_code, "retry-after" in answer.headers) == (503, True), answer.text
        deadline = time.monotonic() + BACK_SECONDS
        while (await send(client)).status_code != 201:
            assert time.monotonic() < deadline, "it does not go on"
            await asyncio.sleep(0.2)
    stored = broken.rows(
        "SELECT CAST(SUBSTRING_INDEX(d.value, ' ', 1) AS UNSIGNED) FROM {ingest}.data_stream d "
        "JOIN {ingest}.telemetry_data v ON v.id = d.telemetry_data_id "
        f"WHERE v.sensor_id = {device['sensorId']} AND v.variable_name = 'note'"
    )
    numbers = [int(number) for (number,) in stored]
    assert len(set(numbers)) == len(numbers)
    assert set(acknowledged) <= set(numbers)
    assert {process: broken.stack.pids(process) for process in SERVICES} == before
