"""Chains that remember, over the real processes: saved over REST, fed over HTTP, killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.stack import Stack, eventually, running

DEADLINE_S = 40.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("var"), AEMOS_DEMO_DEVICES="1") as started:
        yield started


def made(stack: Stack, path: str, body: Any) -> dict[str, Any]:
    status, answer = stack.call("POST", path, body)
    assert status == 201, answer
    assert isinstance(answer, dict)
    return answer


def sensor_of(stack: Stack) -> str:
    device = stack.demo["devices"][0]["uuid"]
    return str(stack.call("GET", f"/api/v1/sensors?device={device}")[1]["sensors"][0]["uuid"])


def state(stack: Stack, name: str) -> int:
    body = {"device": stack.demo["devices"][0]["uuid"], "name": name, "defaultValue": "normal"}
    return int(made(stack, "/api/v1/device-states", body)["id"])


def value_of(stack: Stack, state_id: int) -> str:
    return str(stack.call("GET", f"/api/v1/device-states/{state_id}")[1]["value"])


def asserting(state_id: int, value: str, name: str) -> dict[str, Any]:
    config = {"action": "setDeviceState", "deviceStateId": state_id, "newStateValue": value}
    return {"type": "action", "name": name, "config": config}


def test_a_deadline_outlives_the_worker(stack: Stack) -> None:
    """A condition that holds for three seconds raises the state though the worker that saw it begin was killed; then a
    reading that does not hold leads the other way."""
    door = state(stack, "door")
    held = {"kind": "held", "sensorUUID": sensor_of(stack), "condition": "value > 900", "seconds": 3}
    body = {
        "name": "held",
        "nodes": [
            {"type": "filter", "name": "too long", "config": held},
            asserting(door, "open too long", "raise"),
            asserting(door, "normal", "clear"),
        ],
        "connections": [
            {"from": "too long", "outcome": "true", "to": "raise"},
            {"from": "too long", "outcome": "false", "to": "clear"},
        ],
    }
    chain = made(stack, "/api/v1/rule-chains", body)
    assert stack.send(901)[0] == 201
    for pid in stack.pids("aemos_rules worker"):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: value_of(stack, door) == "open too long", DEADLINE_S)
    assert stack.send(1)[0] == 201
    eventually(lambda: value_of(stack, door) == "normal", DEADLINE_S)
    assert chain["version"] == 1


def test_a_derived_reading_is_judged_too(stack: Stack) -> None:
    """A chain saves the double of a reading as another variable of the sensor; another chain sees it."""
    sensor, seen = sensor_of(stack), state(stack, "seen")
    save = {"action": "saveReading", "variableName": "doubled", "value": "value * 2"}
    watched = {"sensorUUID": sensor, "variableName": "temperature", "condition": "value == 700"}
    made(stack, "/api/v1/rule-chains", {"name": "derive", "nodes": [
        {"type": "filter", "config": watched}, {"type": "action", "config": save}]})  # fmt: skip
    judged = {"sensorUUID": sensor, "variableName": "doubled", "condition": "value == 1400"}
    made(stack, "/api/v1/rule-chains", {"name": "see", "nodes": [
        {"type": "filter", "config": judged}, asserting(seen, "yes", "say")]})  # fmt: skip
    assert stack.send(700)[0] == 201
    eventually(lambda: value_of(stack, seen) == "yes", DEADLINE_S)


def test_mistakes_versions_and_kinds_over_rest(stack: Stack) -> None:
    """Every mistake is named with its node and field; an older version is there; node-types has the schemas."""
    body = {
        "name": "wrong",
        "nodes": [
            {"type": "filter", "config": {"sensorUUID": "nobody", "condition": "value >"}},
            {"type": "action", "config": {"action": "setDeviceState", "deviceStateId": 0, "newStateValue": "x"}},
        ],
    }
    status, refused = stack.call("POST", "/api/v1/rule-chains", body)
    assert status == 422
    assert [error["loc"] for error in refused["errors"]] == [
        "nodes.0.config.condition", "nodes.1.config.deviceStateId", "nodes.0.config.sensorUUID"
    ]  # fmt: skip
    good = {"type": "filter", "name": "f", "config": {"sensorUUID": sensor_of(stack), "condition": "value > 1"}}
    first = made(stack, "/api/v1/rule-chains", {"name": "v", "nodes": [good]})
    path = f"/api/v1/rule-chains/{first['id']}"
    changed = good | {"config": good["config"] | {"condition": "value > 2"}}  # type: ignore[operator]
    status, second = stack.call("PATCH", path, {"nodes": [changed]})
    assert (status, second["version"]) == (200, 2)
    older = stack.call("GET", f"{path}?version=1")[1]
    assert (older["version"], older["nodes"]) == (1, first["nodes"])
    kinds = stack.call("GET", "/api/v1/node-types")[1]["nodeTypes"]
    held = next(kind for kind in kinds if kind["kind"] == "held")
    assert held["configSchema"]["required"] == ["kind", "condition", "seconds"]


def test_chains_live_in_a_file(stack: Stack, tmp_path: Path) -> None:
    """What is exported applies unchanged; an edit is one version more; a mistake names chain, node and field."""
    file = tmp_path / "chains.yaml"

    def aemos(verb: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "aemos_client", "chains", verb, str(file)]
        where = ["--url", stack.demo["httpUrl"], "--token", stack.token]
        return subprocess.run([*command, *where], capture_output=True, text=True, check=False, timeout=60)

    assert aemos("export").returncode == 0
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    before = {chain["name"]: chain for chain in stack.call("GET", "/api/v1/rule-chains?pageSize=1000")[1]["ruleChains"]}
    assert {chain["name"] for chain in content["ruleChains"]} == set(before)
    assert set(aemos("apply").stdout.split("\n")) == {f"unchanged: {name}" for name in before} | {""}
    edited, fresh = content["ruleChains"][0], {"name": "from a file", "nodes": [content["ruleChains"][0]["nodes"][0]]}
    edited["enabled"] = False
    file.write_text(yaml.safe_dump({"ruleChains": [edited, fresh]}), encoding="utf-8")
    assert aemos("apply").stdout == f"changed: {edited['name']}\ncreated: from a file\n"
    assert aemos("apply").stdout == f"unchanged: {edited['name']}\nunchanged: from a file\n"
    path = f"/api/v1/rule-chains/{before[edited['name']]['id']}"
    assert stack.call("GET", path)[1]["version"] == before[edited["name"]]["version"] + 1
    fresh["nodes"] = [{"type": "filter", "config": {"kind": "held", "seconds": 3}}]
    file.write_text(yaml.safe_dump({"ruleChains": [fresh]}), encoding="utf-8")
    refused = aemos("apply")
    assert (refused.returncode, refused.stderr) == (1, "from a file: nodes.0.config.condition: required\n")
