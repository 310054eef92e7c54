"""History over REST, on a running installation: repeated parameters, aggregates, latest, export, retention."""

from __future__ import annotations

import csv
import gzip
import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support.stack import Stack, running

DAY = 1_700_006_400  # 2023-11-15T00:00:00Z
MANY = 1_900  # the limit of a device is 2,000 in a second


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("var"), AEMOS_DEMO_DEVICES="2") as stack:
        # Seeded at the same time, so that the second device may have the first sensor; answers are in order of sensor.
        stack.demo["devices"].sort(key=lambda device: device["sensorId"])
        for number in range(2):
            readings = [
                {"value": i % 10 + number, "variableName": "temperature", "recievedAt": iso(DAY + i * 60)}
                for i in range(MANY)
            ]
            for begin in range(0, MANY, 1_000):
                batch = readings[begin : begin + 1_000]
                status, answer = stack.call(
                    "POST", "/api/v1/datastreams/batch", batch, stack.demo["devices"][number]["token"]
                )
                assert status < 300, answer
        yield stack


def iso(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def get(stack: Stack, path: str, **parameters: Any) -> Any:
    status, answer = stack.call("GET", f"/api/v1/datastreams{path}?{urlencode(parameters, doseq=True)}")
    assert status == 200, answer
    return answer


def sensors(stack: Stack) -> list[str]:
    return [device["sensorUuid"] for device in stack.demo["devices"]]


def test_pages_of_many_sensors(stack: Stack) -> None:
    """Repeated parameters; newest first on request; every reading once."""
    found: list[Any] = []
    token = ""
    while True:
        answer = get(stack, "", sensorUuid=sensors(stack), order="desc", pageSize=1_000, pageToken=token)
        found += answer["readings"]
        if not (token := answer["nextPageToken"]):
            break
    assert len({reading["id"] for reading in found}) == len(found) == 2 * MANY
    assert [r["recievedAt"] for r in found] == sorted((r["recievedAt"] for r in found), reverse=True)


def test_aggregates_with_gaps(stack: Stack) -> None:
    """An hour before the first reading is there, and says 0."""
    asked = {"sensorUuid": sensors(stack), "variableName": "temperature", "aggregate": ["avg", "max"], "interval": "1h"}
    answer = get(stack, "", **asked, **{"from": iso(DAY - 3_600), "to": iso(DAY + 7_200)})
    assert answer["readings"] == []
    for number, series in enumerate(answer["aggregates"]):
        gap, first, second = series["intervals"]
        assert gap == {"from": iso(DAY - 3_600)[:-1] + ".000Z", "to": iso(DAY)[:-1] + ".000Z", "count": 0}
        assert (first["count"], first["avg"], first["max"]) == (60, 4.5 + number, 9 + number)
        assert second["count"] == 60
    status, problem = stack.call("GET", f"/api/v1/datastreams?{urlencode({**asked, 'from': iso(0)}, doseq=True)}")
    assert (status, problem["reason"]) == (422, "too_many_intervals")


def test_latest_follows_a_reading(stack: Stack) -> None:
    """Within a moment of the 201; a late one does not count."""
    for value, at in ((71.5, DAY + MANY * 60), (70.5, DAY + 30)):
        assert stack.send(value, recievedAt=iso(at))[0] == 201
    deadline = time.monotonic() + 5
    while get(stack, "/latest", sensorUuid=sensors(stack))["readings"][0]["value"] != "71.5":
        assert time.monotonic() < deadline
    first, second = get(stack, "/latest", sensorUuid=sensors(stack))["readings"]
    assert (first["sensorUuid"], first["value"]) == (sensors(stack)[0], "71.5")
    assert second["value"] == str((MANY - 1) % 10 + 1)
    assert stack.call("GET", "/api/v1/datastreams/latest?sensorUuid=nowhere")[0] == 404


def exported(stack: Stack, query: str, **headers: str) -> bytes:
    request = urllib.request.Request(f"{stack.demo['httpUrl']}/api/v1/datastreams/export?{query}")
    for name, value in {"Authorization": f"Bearer {stack.token}", **headers}.items():
        request.add_header(name.replace("_", "-"), value)
    with urllib.request.urlopen(request, timeout=20) as answer:
        body: bytes = answer.read()
    return body


def test_export_gives_everything(stack: Stack) -> None:
    """As CSV and as packed NDJSON, the same readings in the same order."""
    query = urlencode({"sensorUuid": sensors(stack), "to": iso(DAY + MANY * 60)}, doseq=True)
    rows = list(csv.DictReader(exported(stack, f"{query}&format=csv").decode().splitlines()))
    lines = gzip.decompress(exported(stack, query, Accept_Encoding="gzip")).decode().splitlines()
    assert len(rows) >= 2 * MANY
    assert [json.loads(line) for line in lines] == [
        {**row, "id": int(row["id"]), "telemetryDataId": int(row["telemetryDataId"])} for row in rows
    ]


def test_the_organization_says_how_long_it_keeps_readings(stack: Stack) -> None:
    """Administrators set it, of their own organization, within bounds."""
    status, answer = stack.call("PATCH", "/api/v1/organization", {"retentionDays": 400})
    assert (status, answer["name"], answer["retentionDays"]) == (200, "Demo", 400)
    assert stack.call("PATCH", "/api/v1/organization", {"retentionDays": -1})[0] == 422
    assert stack.call("PATCH", "/api/v1/organization", {"retentionDays": 0})[1]["retentionDays"] == 0
