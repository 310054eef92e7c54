"""Why did my rule not fire? Over the real processes: runs recorded, explained, tried, and chains that only fail."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.stack import Stack, eventually, running


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("var"), AEMOS_DEMO_DEVICES="3") as stack:
        yield stack


def high(stack: Stack, device: int) -> int:
    """The chain "High Temperature Alert" of a demo device."""
    sensor = stack.demo["devices"][device]["sensorUuid"]
    chains = stack.call("GET", "/api/v1/rule-chains?pageSize=1000")[1]["ruleChains"]
    return next(
        int(chain["id"])
        for chain in chains
        if chain["name"] == "High Temperature Alert" and chain["nodes"][0]["config"]["sensorUUID"] == sensor
    )


def made_up(stack: Stack, value: Any, device: int = 0) -> dict[str, Any]:
    sensor = stack.demo["devices"][device]["sensorUuid"]
    return {"sensorUuid": sensor, "variableName": "temperature", "value": value}


def test_a_run_that_changed_something_is_recorded(stack: Stack) -> None:
    """With each node's outcome, its version, its reading and its trace; what changed nothing is only counted."""
    chain = high(stack, 0)
    ids = [stack.send(value, 0)[1]["data"]["id"] for value in (24, 30, 31)]
    runs = eventually(lambda: stack.call("GET", f"/api/v1/rule-chains/{chain}/runs")[1]["chainRuns"])
    (run,) = runs
    assert (run["dataStreamId"], run["outcome"], run["trigger"], run["version"]) == (ids[1], "fired", "reading", 1)
    assert [node["outcome"] for node in run["nodes"]] == ["true", "success", "success"]
    assert [(e["type"], e["value"]) for e in run["effects"]] == [("setDeviceState", "warning")]
    assert stack.call("GET", f"/api/v1/chain-runs/{run['id']}")[1] == run
    activity = eventually(
        lambda: (a := stack.call("GET", f"/api/v1/rule-chains/{chain}/activity")[1])["fired"] == 2 and a
    )
    assert (activity["stopped"], activity["failed"]) == (1, 0)
    assert ids[0] in [idle["dataStreamId"] for idle in activity["idleRuns"]]


def test_a_reading_is_explained(stack: Stack) -> None:
    """A made-up one and the newest stored one: which node stopped it, and the value that it saw."""
    chain = high(stack, 1)
    status, run = stack.call("POST", f"/api/v1/rule-chains/{chain}/explain", {"reading": made_up(stack, 24, 1)})
    assert (status, run["outcome"], run["id"]) == (200, "stopped", 0)
    assert [(n["outcome"], n["values"]["value"]) for n in run["nodes"]] == [("false", 24)]
    stack.send(25.5, 1)
    stored = {key: value for key, value in made_up(stack, 0, 1).items() if key != "value"}
    status, run = stack.call("POST", f"/api/v1/rule-chains/{chain}/explain", {"reading": stored})
    assert (run["outcome"], run["nodes"][0]["values"]["value"], run["dataStreamId"] > 0) == ("fired", 25.5, True)
    assert stack.call("POST", f"/api/v1/rule-chains/{chain}/explain", {"reading": {}})[0] == 422


def test_an_explanation_knows_the_device_as_it_is(stack: Stack) -> None:
    """Not as it was when somebody asked before."""
    sensor, device = (stack.demo["devices"][2][name] for name in ("sensorUuid", "uuid"))
    config = {"sensorUUID": sensor, "condition": 'device.name == "renamed"'}
    body = {"name": "by name", "nodes": [{"type": "filter", "name": "f", "config": config}]}
    path = f"/api/v1/rule-chains/{stack.call('POST', '/api/v1/rule-chains', body)[1]['id']}"

    def outcome() -> str:
        return str(stack.call("POST", f"{path}/explain", {"reading": made_up(stack, 24, 2)})[1]["nodes"][0]["outcome"])

    assert outcome() == "false"
    assert stack.call("PATCH", f"/api/v1/devices/{device}", {"name": "renamed"})[0] == 200
    eventually(lambda: outcome() == "true")
    assert stack.call("DELETE", path)[0] < 300


def test_a_chain_is_tried_before_it_is_saved(stack: Stack) -> None:
    """Nothing is saved, and nothing happens."""
    device = stack.demo["devices"][2]
    nodes = [
        {"type": "filter", "name": "hot", "config": {"sensorUUID": device["sensorUuid"], "condition": "value > 25"}},
        {
            "type": "action",
            "name": "alarm",
            "config": {
                "action": "raiseAlarm",
                "alarmType": "hot",
                "message": "{value} degrees",
            },
        },
    ]
    body = {"chain": {"name": "draft", "nodes": nodes}, "readings": [made_up(stack, v, 2) for v in (20, 30)]}
    status, answer = stack.call("POST", "/api/v1/rule-chains/dry-run", body)
    assert status == 200, answer
    assert [run["outcome"] for run in answer["chainRuns"]] == ["stopped", "fired"]
    (effect,) = answer["chainRuns"][1]["effects"]
    assert (effect["type"], effect["message"]) == ("raiseAlarm", "30.0 degrees")
    assert stack.call("GET", "/api/v1/alarms")[1]["alarms"] == []
    nodes[0]["config"] = {"sensorUUID": device["sensorUuid"], "condition": "value >"}
    assert stack.call("POST", "/api/v1/rule-chains/dry-run", body)[0] == 422


def test_a_chain_that_only_fails_is_suspended(stack: Stack) -> None:
    """After 20 failures in a row, which are recorded; readings are stored, other chains run; saving it ends that."""
    device = stack.demo["devices"][2]
    condition = "device.attributes.limit > 1.0"
    nodes = [{"type": "filter", "name": "f", "config": {"sensorUUID": device["sensorUuid"], "condition": condition}}]
    status, chain = stack.call("POST", "/api/v1/rule-chains", {"name": "fails", "nodes": nodes})
    assert status == 201, chain
    path = f"/api/v1/rule-chains/{chain['id']}"

    def failed() -> Any:
        assert stack.send(30, 2)[0] == 201
        return stack.call("GET", path)[1]["suspension"]

    assert "'f'" in eventually(failed)
    runs = stack.call("GET", f"{path}/runs?outcome=error&pageSize=1000")[1]["chainRuns"]
    assert len(runs) >= 20
    assert runs[0]["nodes"][0]["error"]
    assert stack.call("PATCH", path, {"name": "again"})[1]["suspension"] == ""


def test_chains_that_run_one_another_end(stack: Stack) -> None:
    """Two chains that name each other run five deep; the last run is recorded as a loop."""
    device = stack.demo["devices"][0]
    ends = {"type": "action", "name": "to the other", "config": {"action": "runChain", "ruleChainId": high(stack, 0)}}
    condition = {"sensorUUID": device["sensorUuid"], "condition": "value == -77"}
    begins = {"type": "filter", "name": "begins", "config": condition}
    ids = []
    for name in ("ping", "pong"):
        status, chain = stack.call("POST", "/api/v1/rule-chains", {"name": name, "nodes": [begins, ends]})
        assert status == 201, chain
        ids.append(chain["id"])
    for chain_id, other in zip(ids, reversed(ids), strict=True):
        body = {"nodes": [begins, {**ends, "config": {"action": "runChain", "ruleChainId": other}}]}
        assert stack.call("PATCH", f"/api/v1/rule-chains/{chain_id}", body)[0] == 200
    assert stack.send(-77)[0] == 201

    def failed() -> list[Any]:
        return [
            run
            for chain_id in ids
            for run in stack.call("GET", f"/api/v1/rule-chains/{chain_id}/runs?outcome=loop")[1]["chainRuns"]
        ]

    runs = eventually(failed)
    assert runs[0]["trigger"] == "chain"
    assert "a loop" in runs[0]["nodes"][-1]["error"]
    count = sum(stack.call("GET", f"/api/v1/rule-chains/{i}/activity")[1]["fired"] for i in ids)
    assert count <= 2 * 5


def test_the_tutorial_is_tried_from_the_command_line(stack: Stack, tmp_path: Path) -> None:
    """The page's chain over the page's readings: raised at minute 15, cleared by the last, nothing done."""
    page = Path("docs/tutorial-freezer.md").read_text(encoding="utf-8")
    sensor = stack.demo["devices"][1]["sensorUuid"]
    for name, text in zip(("freezer.yaml", "night.yaml"), re.findall(r"```yaml\n(.*?)```", page, re.S), strict=True):
        (tmp_path / name).write_text(text.replace("freezer-1", sensor), encoding="utf-8")
    command = ["chains", "try", str(tmp_path / "freezer.yaml"), str(tmp_path / "night.yaml")]
    where = ["--url", stack.demo["httpUrl"], "--token", stack.token]
    done = subprocess.run(
        [sys.executable, "-m", "aemos_client", *command, *where],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    raised = next(i for i, line in enumerate(lines) if "=> raiseAlarm" in line)
    cleared = next(i for i, line in enumerate(lines) if "=> clearAlarm" in line)
    began = [i for i, line in enumerate(lines) if line.startswith("2026")]
    assert re.search(r"00:15:00\S+  deadline", lines[max(i for i in began if i < raised)])
    assert re.search(r"00:25:00\S+  reading", lines[max(i for i in began if i < cleared)])
    assert stack.call("GET", "/api/v1/alarms")[1]["alarms"] == []
