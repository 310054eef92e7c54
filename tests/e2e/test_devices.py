"""Devices over the whole stack: who is online, whose token ended, and what was refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import redis

from tests.support.fake_mqtt_ports import connect, publish
from tests.support.notifications import replica
from tests.support.stack import Stack, eventually, running

ACCEPTED, PUBACK_1 = b"\x20\x02\0\0", b"\x40\x02\0\x01"
GATEWAY_PORTS = ("AEMOS_HTTP_PORT", "AEMOS_MQTT_PORT", "AEMOS_COAP_PORT", "AEMOS_GATEWAY_GRPC_PORT")
EFFECTIVE_S = 5.0
LEASE_S = 10.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("var")) as stack:
        yield stack


@contextmanager
def mqtt(port: int, device: dict[str, Any], token: str = "") -> Iterator[socket.socket]:
    """A device that is connected, and does not connect again."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(connect(token or device["token"], uuid=device["uuid"], client=f"e2e-{port}"))
        assert sock.recv(4) == ACCEPTED
        yield sock


class Told:
    """The changes that were announced of each device: online, and why."""

    def __init__(self, pubsub: Any) -> None:
        self._pubsub = pubsub
        self.of: defaultdict[str, list[tuple[bool, str]]] = defaultdict(list)

    def hear(self) -> Told:
        """Takes in what came."""
        while (message := self._pubsub.get_message(timeout=0.1)) is not None:
            if message["type"] == "message" and (body := json.loads(message["data"]))["event"] == "device-connectivity":
                about = body["notification"]
                self.of[about["deviceUuid"]].append((about["metadata"]["online"], about["metadata"]["reason"]))
        return self


def is_online(stack: Stack, uuid: str) -> bool:
    return bool(stack.call("GET", f"/api/v1/devices/{uuid}")[1]["online"])


def test_a_killed_gateway(stack: Stack) -> None:
    """Whoever connects again within the lease, or has another gateway, was never away, and whoever does not is offline:
    that is told once, though ingest is killed with the gateway."""
    stays, leaves, both, sends = stack.demo["devices"][:4]
    with ExitStack() as stack_of:
        enter = stack_of.enter_context
        pubsub = enter(redis.Redis(port=int(stack.environment["AEMOS_REDIS_PORT"]))).pubsub()
        enter(pubsub).subscribe("notifications:device-state-change")
        other = enter(replica(stack, "aemos_gateway", *GATEWAY_PORTS))["AEMOS_MQTT_PORT"]
        eventually(lambda: _listens(other))
        enter(mqtt(other, both))
        assert stack.send(21, device=3)[0] == 201
        for device in (stays, leaves, both):
            enter(mqtt(stack.demo["mqtt"]["port"], device))
        eventually(lambda: all(is_online(stack, device["uuid"]) for device in (stays, leaves, both, sends)))
        for pid in stack.pids("aemos_gateway") + stack.pids("aemos_ingest"):
            os.kill(pid, signal.SIGKILL)
        killed_at = time.monotonic()
        eventually(lambda: _is_let_in(stack_of, stack.demo["mqtt"]["port"], stays), LEASE_S)
        told = Told(pubsub)
        eventually(lambda: len(told.hear().of[leaves["uuid"]]) == 2, 4 * LEASE_S)
        eventually(lambda: time.monotonic() - killed_at > 2 * LEASE_S + 3)
        told.hear()
        assert told.of[leaves["uuid"]] == [(True, "connected"), (False, "gateway_lost")]
        assert told.of[stays["uuid"]] == told.of[both["uuid"]] == [(True, "connected")]
        assert told.of[sends["uuid"]] == [(True, "reading")]
        assert [is_online(stack, device["uuid"]) for device in (stays, leaves, both)] == [True, False, True]


def _is_let_in(stack_of: ExitStack, port: int, device: dict[str, Any]) -> bool:
    try:
        stack_of.enter_context(mqtt(port, device))
    except (OSError, AssertionError):  # nobody listens yet, or cannot ask ingest
        return False
    return True


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_a_rotated_token_ends_everywhere(stack: Stack) -> None:
    """Within 5 s an open session is closed and HTTP answers 401; the new token works, and what was used is known."""
    device = stack.demo["devices"][2]
    path = f"/api/v1/devices/{device['uuid']}/tokens"
    status, old = stack.call("POST", path, {"name": "field", "expiresAt": "2099-01-01T00:00:00Z"})
    assert (status, old["expiresAt"]) == (201, "2099-01-01T00:00:00.000Z")
    reading = {"variableName": "temperature", "value": 21}
    with mqtt(stack.demo["mqtt"]["port"], device, old["token"]) as sock:
        assert stack.call("POST", "/api/v1/datastreams/token", reading, old["token"])[0] == 201
        status, new = stack.call("POST", f"{path}/{old['id']}/rotate", {"overlapSeconds": 0})
        assert (status, new["name"]) == (200, "field")
        sock.settimeout(EFFECTIVE_S)
        assert sock.recv(1) == b""
    assert stack.call("POST", "/api/v1/datastreams/token", reading, old["token"])[0] == 401
    assert stack.call("POST", "/api/v1/datastreams/token", reading, new["token"])[0] == 201
    assert stack.call("POST", f"{path}/{old['id']}/rotate", {})[0] == 409
    listed = {token["id"]: token for token in stack.call("GET", path)[1]["tokens"]}
    assert "revokedAt" in listed[old["id"]]
    assert {token["token"] for token in listed.values()} == {""}
    eventually(lambda: "lastUsedAt" in _token(stack, path, new["id"]))
    assert "lastSeenAt" in stack.call("GET", f"/api/v1/devices/{device['uuid']}")[1]


def _token(stack: Stack, path: str, token_id: int) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in stack.call("GET", path)[1]["tokens"] if one["id"] == token_id)
    return found


def test_what_was_refused_can_be_asked_for(stack: Stack) -> None:
    """Over each protocol, with its reason; over MQTT it is recorded when it is acknowledged."""
    device = stack.demo["devices"][3]
    path = f"/api/v1/devices/{device['uuid']}/rejections"
    wrong = b'{"variableName": "temperature", "value": "warm"}'
    with mqtt(stack.demo["mqtt"]["port"], device) as sock:
        sock.sendall(publish(wrong, topic=f"aemos/devices/{device['uuid']}/telemetry"))
        assert sock.recv(4) == PUBACK_1
        [first] = stack.call("GET", path)[1]["rejections"]
        assert (first["protocol"], first["reason"], first["payload"]) == ("mqtt", "wrong_type", wrong.decode())
        assert [error["loc"] for error in first["errors"]] == ["value"]
    assert stack.call("POST", "/api/v1/datastreams/token", b"{", device["token"])[0] == 400
    url = f"{stack.demo['coapUrl']}/api/v1/datastreams/token?token={device['token']}"
    subprocess.run(["coap-client-notls", "-m", "post", "-e", "{}", url], check=False, capture_output=True, timeout=20)
    found = eventually(lambda: (answer := stack.call("GET", path)[1]["rejections"])[2:] and answer)
    assert [one["protocol"] for one in found] == ["coap", "http", "mqtt"]
    assert [one["reason"] for one in found] == ["invalid", "malformed", "wrong_type"]
    assert stack.call("GET", path)[1]["notKept"] == 0


def test_devices_are_found_by_label(stack: Stack) -> None:
    """Labels and attributes go in and out as they are."""
    body = {"name": "Pump", "labels": {"site": "north"}, "attributes": {"floor": 3, "tags": ["a"]}}
    status, made = stack.call("POST", "/api/v1/devices", body)
    assert status == 201
    assert (made["labels"], made["attributes"]) == (body["labels"], body["attributes"])
    listed = stack.call("GET", "/api/v1/devices?label=site%3Dnorth")[1]["devices"]
    assert [device["uuid"] for device in listed] == [made["uuid"]]
    status, changed = stack.call("PATCH", f"/api/v1/devices/{made['uuid']}", {"labels": {"site": "", "rack": "7"}})
    assert (status, changed["labels"], changed["name"]) == (200, {"rack": "7"}, "Pump")
    assert stack.call("PATCH", f"/api/v1/devices/{made['uuid']}", {"labels": {"a b": "x"}})[0] == 422
