"""SIGTERM under load: what was begun is finished and answered, then the process ends."""

from __future__ import annotations

import asyncio
import os
import signal

import httpx
import psutil
import pytest

from tests.faults.installation import Installation
from tests.faults.load import Mqtt, body
from tests.faults.nemesis import FAULTS
from tests.support.redis_server import until

REQUESTS = 20
READINGS = "/api/v1/datastreams/token"
WRITTEN = "http11.send_request_body.complete"
DRAIN_SECONDS = 10.0
BACK_SECONDS = 15.0


@pytest.mark.parametrize("process", ["aemos_gateway", "aemos_ingest"])
async def test_no_request_is_cut(broken: Installation, process: str) -> None:
    """Requests wait for the database, the process is told to stop, the database is back: all of them are answered.

    What gateway had not given to ingest when that stopped is refused with 503, and is not stored.
    """
    (pid,) = broken.stack.pids(process)
    device = broken.stack.demo["devices"][broken.fresh(1)[0]]
    values = [20 + number / 100 for number in range(REQUESTS)]
    headers = {"Authorization": f"Bearer {device['token']}"}
    mqtt = Mqtt(broken.stack, broken.stack.demo["devices"][broken.fresh(1)[0]])
    assert await mqtt.send(20.0)
    begun: list[str] = []

    async def notice(event: str, _: object) -> None:
        begun.append(event)

    async with httpx.AsyncClient(base_url=broken.stack.demo["httpUrl"], headers=headers, timeout=20) as client:
        assert (await client.get("/livez")).status_code == 200
        with FAULTS["freeze mariadb"](broken):
            posts = [client.post(READINGS, content=body(v), extensions={"trace": notice}) for v in values]
            answers = asyncio.gather(mqtt.send(21.0), *posts)
            await until(lambda: begun.count(WRITTEN) == REQUESTS, BACK_SECONDS, "requests under way")
            assert (await client.get("/livez")).status_code == 200  # gateway has read what came before
            os.kill(pid, signal.SIGTERM)
        published, *posted = await answers
    statuses = [answer.status_code for answer in posted]
    assert published
    assert set(statuses) <= ({201} if process == "aemos_gateway" else {201, 503})
    await until(lambda: not psutil.pid_exists(pid), DRAIN_SECONDS, f"{process} ends")
    stored = broken.rows(
        "SELECT d.value FROM {ingest}.data_stream d JOIN {ingest}.telemetry_data v ON v.id = d.telemetry_data_id "
        f"WHERE v.sensor_id = {device['sensorId']} ORDER BY d.value"
    )
    created = [value for value, status in zip(values, statuses, strict=True) if status == 201]
    assert [float(value) for (value,) in stored] == created
    await until(lambda: _is_ready(broken), BACK_SECONDS, f"{process} is back")


def _is_ready(broken: Installation) -> bool:
    try:
        return httpx.get(broken.stack.demo["httpUrl"] + "/readyz").status_code == 200
    except httpx.HTTPError:
        return False
