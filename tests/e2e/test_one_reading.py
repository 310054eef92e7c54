"""One reading, all the way, with clients that nobody here wrote."""

from __future__ import annotations

import csv
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aemos_client import trace_page

from tests.support.infra import NODE
from tests.support.stack import Stack, eventually, running


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("var")) as stack:
        yield stack


class Client:
    """A command whose output is read line by line from a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def text(self) -> str:
        return self._path.read_text(encoding="utf-8", errors="replace")

    def objects(self) -> list[Any]:
        """The JSON objects in the output, whatever stands between them."""
        decoder, text, found, at = json.JSONDecoder(), self.text(), [], 0
        while (at := text.find("{", at)) >= 0:
            try:
                value, at = decoder.raw_decode(text, at)
            except ValueError:
                break
            found.append(value)
        return found


@contextmanager
def client(path: Path, *command: str) -> Iterator[Client]:
    with (
        path.open("wb") as output,
        subprocess.Popen(["stdbuf", "-oL", *command], stdout=output, stderr=output, cwd=NODE) as process,
    ):
        try:
            yield Client(path)
        finally:
            process.kill()


def test_a_reading_is_stored_judged_and_announced_three_ways(stack: Stack, tmp_path: Path) -> None:
    """24.0 then 25.5 by curl: two 201s, two rows, one state change, three deliveries of one id, one connected trace."""
    device = stack.demo["devices"][0]
    mqtt = stack.demo["mqtt"]
    topic = f"aemos/devices/{device['uuid']}/notifications"
    observe = f"{stack.demo['coapUrl']}/api/v1/devices/{device['uuid']}/notifications?token={device['token']}"
    subscribe = ("-h", mqtt["host"], "-p", str(mqtt["port"]), "-u", device["uuid"], "-P", device["token"], "-q", "1")
    with (
        client(tmp_path / "io", "node", "watch.js", stack.demo["socketIoUrl"], stack.token, device["uuid"]) as browser,
        client(tmp_path / "mqtt", "mosquitto_sub", *subscribe, "-d", "-t", topic) as subscriber,
        client(tmp_path / "coap", "coap-client-notls", "-s", "60", "-w", "-m", "get", observe) as observer,
    ):
        eventually(lambda: any(o.get("event") == "subscribed" and o["body"]["ok"] for o in browser.objects()))
        eventually(lambda: "SUBACK" in subscriber.text() or "Subscribed" in subscriber.text())
        eventually(lambda: "{}" in observer.text())
        first, second = _curl(stack, device["token"], "24.0"), _curl(stack, device["token"], "25.5")

        assert [set(first["data"]), first["data"]["value"], second["data"]["value"]] == [
            {"id", "value", "variableName", "telemetryDataId", "sensorUuid", "recievedAt"},
            "24.0",
            "25.5",
        ]
        assert second["data"]["id"] > first["data"]["id"]
        changes = [
            [o["body"] for o in browser.objects() if o["event"] == "device-state-change"]
            if source is browser
            else [o for o in source.objects() if o.get("type") == "device-state-change"]
            for source in (browser, subscriber, observer)
            if eventually(lambda source=source: "device-state-change" in source.text())
        ]
    assert [len(found) for found in changes] == [1, 1, 1]
    assert changes[0] == changes[1] == changes[2]
    (change,) = changes[0]
    assert change["deviceUuid"] == device["uuid"]
    assert change["metadata"] == {"stateName": "temperatureAlert", "newValue": "warning", "oldValue": "normal"}
    assert change["id"]
    _assert_stored(stack, device, [first, second])
    _assert_connected(stack, change["traceId"])


def _curl(stack: Stack, token: str, value: str) -> Any:
    body = json.dumps({"value": value, "variableName": "temperature"})
    url = stack.demo["httpUrl"] + "/api/v1/datastreams/token"
    command = ["curl", "-s", "-w", "\n%{http_code}", "-X", "POST", url, "-H", f"Authorization: Bearer {token}", "-d"]
    answer = subprocess.run([*command, body], capture_output=True, check=True, timeout=20, text=True).stdout
    text, status = answer.rsplit("\n", 1)
    assert status == "201", answer
    return json.loads(text)


def _assert_stored(stack: Stack, device: Any, answers: list[Any]) -> None:
    path = f"/api/v1/datastreams?sensorUuid={device['sensorUuid']}&variableName=temperature"
    readings = stack.call("GET", path)[1]["readings"]
    assert [(r["id"], r["value"]) for r in readings] == [(a["data"]["id"], a["data"]["value"]) for a in answers]
    (state,) = stack.call("GET", f"/api/v1/device-states?deviceUuid={device['uuid']}")[1]["deviceStates"]
    instances = stack.call("GET", f"/api/v1/device-states/{state['id']}/instances")[1]["deviceStateInstances"]
    assert [(i["value"], i["oldValue"], i["dataStreamId"]) for i in instances] == [
        ("warning", "normal", answers[1]["data"]["id"])
    ]


def _assert_connected(stack: Stack, trace_id: str) -> None:
    names = {
        "receive reading",
        "write readings",
        "commit readings",
        "evaluate readings",
        "run chain",
        "publish notification",
        "emit notification",
    }

    def spans() -> Any:
        mine = [span for span in trace_page.load(stack.var / "traces") if span["trace"] == trace_id]
        return mine if names <= {span["name"] for span in mine} else None

    found = eventually(spans)
    known = {span["span"] for span in found}
    assert [span["name"] for span in found if span["parent"] not in known] == ["receive reading"]


def test_mqtt_and_coap_are_acknowledged_after_the_commit(stack: Stack) -> None:
    """A QoS 1 PUBLISH and a confirmable POST end in rows like a curl does."""
    device, mqtt = stack.demo["devices"][1], stack.demo["mqtt"]
    message = '{"value": 20.5, "variableName": "temperature"}'
    publish = ["-h", mqtt["host"], "-p", str(mqtt["port"]), "-u", device["uuid"], "-P", device["token"], "-q", "1"]
    topic = f"aemos/devices/{device['uuid']}/telemetry"
    subprocess.run(["mosquitto_pub", *publish, "-t", topic, "-m", message], check=True, timeout=20)
    url = f"{stack.demo['coapUrl']}/api/v1/datastreams/token?token={device['token']}"
    posted = subprocess.run(
        ["coap-client-notls", "-m", "post", "-e", message, url], capture_output=True, check=True, timeout=20
    )
    assert json.loads(posted.stdout)["data"]["value"] == 20.5
    path = f"/api/v1/datastreams?sensorUuid={device['sensorUuid']}&variableName=temperature"
    assert [r["value"] for r in stack.call("GET", path)[1]["readings"]] == ["20.5", "20.5"]


def test_a_state_set_by_hand_is_announced_unless_it_is_equal(stack: Stack) -> None:
    """PUT of a new value makes one instance; the same again makes none."""
    device = stack.demo["devices"][2]
    (state,) = stack.call("GET", f"/api/v1/device-states?deviceUuid={device['uuid']}")[1]["deviceStates"]
    for _ in range(2):
        status, after = stack.call("PUT", f"/api/v1/device-states/{state['id']}/value", {"value": "warning"})
        assert (status, after["value"]) == (200, "warning")
    instances = stack.call("GET", f"/api/v1/device-states/{state['id']}/instances")[1]["deviceStateInstances"]
    assert [i["value"] for i in instances] == ["warning"]


def test_a_late_reading_moves_no_state_back(stack: Stack) -> None:
    """A reading of yesterday is stored, and changes nothing that a reading of today said."""
    device = stack.demo["devices"][3]
    assert stack.send(30, 3)[0] == 201
    (state,) = stack.call("GET", f"/api/v1/device-states?deviceUuid={device['uuid']}")[1]["deviceStates"]

    def value() -> str:
        return str(stack.call("GET", f"/api/v1/device-states/{state['id']}")[1]["value"])

    eventually(lambda: value() == "warning")
    assert stack.send(20, 3, recievedAt="2026-01-20T10:30:00Z")[0] == 201
    assert stack.send(31, 3)[0] == 201
    names = [
        n["id"] for n in stack.call("GET", f"/api/v1/device-states/{state['id']}/instances")[1]["deviceStateInstances"]
    ]
    assert len(names) == 1
    assert value() == "warning"


@pytest.mark.parametrize(
    ("condition", "fires"),
    [("value > 25", True), ("value * 2 > 50", True), ("value * 9 / 5 + 32 > 77.9", True), ("value > 26", False)],
)
def test_conditions_with_whole_numbers_work(stack: Stack, condition: str, fires: bool) -> None:
    """What a user types as a whole number compares with a reading."""
    device = stack.demo["devices"][4]
    name = f"state of {condition}"
    state = stack.call("POST", "/api/v1/device-states", {"device": device["uuid"], "name": name, "defaultValue": "no"})[
        1
    ]
    nodes = [
        {"type": "filter", "name": "f", "config": {"sensorUUID": device["sensorUuid"], "condition": condition}},
        {
            "type": "action",
            "name": "a",
            "config": {"action": "sendNotification", "deviceStateId": state["id"], "newStateValue": "yes"},
        },
    ]
    status, chain = stack.call("POST", "/api/v1/rule-chains", {"name": condition, "nodes": nodes})
    assert status == 201, chain
    try:
        assert stack.send(25.6, 4)[0] == 201
        marker = stack.call("GET", f"/api/v1/device-states?deviceUuid={device['uuid']}")[1]["deviceStates"][0]
        eventually(lambda: stack.call("GET", f"/api/v1/device-states/{marker['id']}")[1]["value"] == "warning")
        expected = "yes" if fires else "no"
        eventually(lambda: stack.call("GET", f"/api/v1/device-states/{state['id']}")[1]["value"] == expected)
    finally:
        assert stack.call("DELETE", f"/api/v1/rule-chains/{chain['id']}")[0] == 204


def test_a_bad_condition_is_refused_with_its_position(stack: Stack) -> None:
    """422 names the node, the field and the column."""
    config = {"sensorUUID": stack.demo["devices"][0]["sensorUuid"], "condition": "value >> 25"}
    body = {"name": "bad", "nodes": [{"type": "filter", "name": "f", "config": config}]}
    status, problem = stack.call("POST", "/api/v1/rule-chains", body)
    assert status == 422
    assert [e["loc"] for e in problem["errors"]] == ["nodes.0.config.condition"]
    assert "column" in problem["errors"][0]["message"]


def test_an_enabled_schedule_runs_its_chain(stack: Stack) -> None:
    """A chain on `* * * * * *` is fired once a second, and its action is done."""
    device = stack.demo["devices"][5]
    (state,) = stack.call("GET", f"/api/v1/device-states?deviceUuid={device['uuid']}")[1]["deviceStates"]
    config = {"action": "sendNotification", "deviceStateId": state["id"], "newStateValue": "scheduled"}
    body = {
        "name": "every second",
        "nodes": [{"type": "action", "name": "a", "config": config}],
        "scheduleEnabled": True,
        "cronExpression": "* * * * * *",
        "timezone": "UTC",
    }
    status, chain = stack.call("POST", "/api/v1/rule-chains", body)
    assert status == 201, chain
    eventually(lambda: stack.call("GET", f"/api/v1/device-states/{state['id']}")[1]["value"] == "scheduled")
    firings = eventually(
        lambda: (f := stack.call("GET", f"/api/v1/schedules/{chain['id']}/firings")[1]["firings"])[2:] and f
    )
    times = [firing["plannedAt"] for firing in firings]
    assert len(set(times)) == len(times)
    first = firings[-1]["plannedAt"]
    ended = eventually(lambda: (f := _firings(stack, chain)[first])["outcome"] == "completed" and f)
    assert ended["plannedAt"] <= ended["startedAt"] <= ended["finishedAt"]
    assert stack.call("DELETE", f"/api/v1/rule-chains/{chain['id']}")[0] == 204


def _firings(stack: Stack, chain: dict[str, Any]) -> dict[str, Any]:
    answer = stack.call("GET", f"/api/v1/schedules/{chain['id']}/firings")[1]
    return {firing["plannedAt"]: firing for firing in answer["firings"]}


def test_a_schedule_changes_is_paused_and_run_by_hand(stack: Stack) -> None:
    """A change is in force within 2 s; a paused schedule still runs when a user says so; mistakes name the field."""
    device = stack.demo["devices"][6]
    (state,) = stack.call("GET", f"/api/v1/device-states?deviceUuid={device['uuid']}")[1]["deviceStates"]
    config = {"action": "sendNotification", "deviceStateId": state["id"], "newStateValue": "by hand"}
    node = {"type": "action", "name": "a", "config": config}
    body = {"name": "yearly", "nodes": [node], "scheduleEnabled": True, "cronExpression": "@yearly"}
    status, chain = stack.call("POST", "/api/v1/rule-chains", body)
    assert status == 201, chain
    path, schedule = f"/api/v1/rule-chains/{chain['id']}", f"/api/v1/schedules/{chain['id']}"
    for wrong, loc in (
        ({"cronExpression": "R * * * * *"}, "cronExpression"),
        ({"intervalSeconds": -1}, "intervalSeconds"),
        ({"runAt": "2020-01-01T00:00:00Z"}, "runAt"),
        ({"timezone": "Mars"}, "timezone"),
        ({"misfirePolicy": "maybe"}, "misfirePolicy"),
        ({"overlapPolicy": "maybe"}, "overlapPolicy"),
    ):
        status, problem = stack.call("PATCH", path, wrong)
        assert (status, [e["loc"] for e in problem["errors"]]) == (422, [loc])
    changed_at = time.monotonic()
    status, changed = stack.call("PATCH", path, {"intervalSeconds": 3_600})
    assert (status, changed["cronExpression"], changed["intervalSeconds"]) == (200, "", 3_600)
    eventually(lambda: stack.call("GET", schedule)[1].get("intervalSeconds") == 3_600)
    assert time.monotonic() - changed_at < 2
    assert stack.call("POST", f"{schedule}/pause")[1]["paused"] is True
    assert stack.call("GET", path)[1]["schedulePaused"] is True
    status, firing = stack.call("POST", f"{schedule}/run")
    assert (status, firing["kind"]) == (200, "manual")
    eventually(lambda: _firings(stack, chain)[firing["plannedAt"]]["outcome"] == "completed")
    assert stack.call("GET", f"/api/v1/device-states/{state['id']}")[1]["value"] == "by hand"
    assert "nextAt" in stack.call("POST", f"{schedule}/resume")[1]
    status, shown = stack.call("POST", "/api/v1/schedules:preview", {"cronExpression": "0 9 * * 1", "count": 2})
    assert (status, shown["description"], len(shown["instants"])) == (200, "At 09:00, only on Monday (UTC)", 2)
    assert stack.call("DELETE", path)[0] == 204
    eventually(lambda: stack.call("GET", schedule)[0] == 404)


def _document(stack: Stack, path: str) -> tuple[str, str]:
    """Content type and text."""
    request = urllib.request.Request(stack.demo["httpUrl"] + path, headers={"Authorization": f"Bearer {stack.token}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def test_a_schedule_reads_sensors_and_makes_a_report(stack: Stack) -> None:
    """A run without a reading looks at today's readings of a sensor, and has them made into a page and a table."""
    assert stack.call("GET", "/api/v1/reports/1/html")[0] == 404
    sensor = stack.demo["devices"][8]["sensorUuid"]
    for value in (20, 22, 24):
        assert stack.send(value, 8)[0] == 201
    about = {"sensorUUIDs": [sensor], "period": "today"}
    condition = f"data.mine.count == 3 && data.mine.max > 23 && data.mine.values['{sensor}'].temperature == 22"
    body = {
        "name": "daily report",
        "nodes": [
            {"type": "transform", "name": "read", "config": {"action": "readSensors", "name": "mine", **about}},
            {"type": "filter", "name": "warm", "config": {"kind": "data", "condition": condition}},
            {"type": "action", "name": "make", "config": {"action": "generateReport", "title": "Day & night", **about}},
        ],
        "scheduleEnabled": True,
        "cronExpression": "@yearly",
    }
    status, chain = stack.call("POST", "/api/v1/rule-chains", body)
    assert status == 201, chain
    eventually(lambda: stack.call("GET", f"/api/v1/schedules/{chain['id']}")[0] == 200)
    firing = stack.call("POST", f"/api/v1/schedules/{chain['id']}/run")[1]
    ended = eventually(lambda: (f := _firings(stack, chain)[firing["plannedAt"]])["outcome"] != "running" and f)
    assert (ended["outcome"], ended["error"]) == ("completed", "")
    (report,) = eventually(lambda: stack.call("GET", "/api/v1/reports")[1]["reports"])
    assert (report["title"], report["ruleChainId"]) == ("Day & night", chain["id"])
    kind, page = _document(stack, f"/api/v1/reports/{report['id']}/html")
    assert kind == "text/html; charset=utf-8"
    assert "Day &amp; night" in page
    assert page.count("<svg") == 1
    kind, table = _document(stack, f"/api/v1/reports/{report['id']}/csv")
    assert kind == "text/csv; charset=utf-8"
    (line,) = list(csv.reader(table.splitlines()))[1:]
    assert (line[1], line[6:10]) == (sensor, ["3", "20.0", "22.0", "24.0"])
    assert stack.call("DELETE", f"/api/v1/reports/{report['id']}")[0] == 204
    assert stack.call("DELETE", f"/api/v1/rule-chains/{chain['id']}")[0] == 204
