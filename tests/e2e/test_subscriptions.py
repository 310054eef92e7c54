"""Telling people: subscriptions, their deliveries, and Watch, on a running installation."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from aemos.v1 import notification_pb2, notification_pb2_grpc

from tests.e2e.test_one_reading import client, eventually
from tests.support.ports import free_port
from tests.support.receivers import Hook, Inbox, smtp_server, webhook_server
from tests.support.stack import Stack, running

SUBSCRIPTIONS, DELIVERIES = "/api/v1/subscriptions", "/api/v1/deliveries"


@dataclass
class World:
    """An installation, and who is told."""

    stack: Stack
    inbox: Inbox
    hook: Hook

    def subscribe(self, channel: str, target: str, **more: Any) -> dict[str, Any]:
        status, made = self.stack.call(
            "POST", SUBSCRIPTIONS, {"name": channel, "channel": channel, "target": target, **more}
        )
        assert status == 201, made
        return dict(made)

    def delivery(self, subscription: dict[str, Any], status: str) -> dict[str, Any]:
        """Its only delivery, once it has this status."""
        path = f"{DELIVERIES}?subscriptionId={subscription['id']}"

        def found() -> Any:
            return [d for d in self.stack.call("GET", path)[1]["deliveries"] if d["status"] == status]

        (delivery,) = eventually(found)
        return dict(delivery)

    def publish(self, **body: Any) -> None:
        status, answer = self.stack.call("POST", "/api/v1/notifications", body)
        assert status == 201, answer

    def ledger(self, kind: str) -> list[dict[str, Any]]:
        listed = self.stack.call("GET", "/api/v1/notifications?pageSize=1000")[1]["notifications"]
        return [notification for notification in listed if notification["type"] == kind]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as opened:
        inbox, port = opened.enter_context(smtp_server())
        hook = opened.enter_context(webhook_server("127.0.0.9"))
        settings = {
            "AEMOS_DEMO_DEVICES": "2",
            "AEMOS_SMTP_HOST": "127.0.0.1",
            "AEMOS_SMTP_PORT": str(port),
            "AEMOS_SMTP_SECURITY": "none",
            "AEMOS_WEBHOOK_NETWORKS": "127.0.0.9/32",  # and "localhost" stays inside
        }
        yield World(opened.enter_context(running(tmp_path_factory.mktemp("var"), **settings)), inbox, hook)


def test_a_change_of_state_is_mailed_and_posted(world: World) -> None:
    """A reading over the limit: a mail, and a signed POST that the reference library verifies; both listed as sent."""
    wanted = {"eventTypes": ["device-state-change"], "stateValues": ["warning"]}
    mail = world.subscribe("email", "ops@example.org", filter=wanted)
    webhook = world.subscribe("webhook", world.hook.url, filter=wanted)
    world.hook.secret = webhook["secret"]
    assert world.stack.call("GET", f"{SUBSCRIPTIONS}/{webhook['id']}")[1]["secret"] == mail["secret"] == ""
    assert [world.stack.send(value)[0] for value in (24.0, 25.5)] == [201, 201]

    sent = [world.delivery(subscription, "sent") for subscription in (mail, webhook)]
    assert [(d["attempts"], d["answer"]) for d in sent] == [(1, "taken"), (1, "200 ok")]
    (message,) = world.inbox.mails  # and none of the reading that changed nothing
    assert (message["To"], message["Subject"].split(" (")[0]) == ("ops@example.org", "temperatureAlert: warning")
    ((body, uid),) = world.hook.received
    assert body["metadata"] == {"stateName": "temperatureAlert", "newValue": "warning", "oldValue": "normal"}
    assert uid == f"msg_{webhook['id']}_{body['id']}"
    assert {d["notificationId"] for d in sent} == {body["id"]}
    for subscription in (mail, webhook):
        assert world.stack.call("DELETE", f"{SUBSCRIPTIONS}/{subscription['id']}")[0] == 204


def test_what_failed_is_listed_and_sent_by_hand(world: World) -> None:
    """With what the target answered, once it takes it again with the same id; then somebody acknowledges."""
    webhook = world.subscribe("webhook", world.hook.url, filter={"eventTypes": ["broken"]})
    world.hook.secret, world.hook.status, world.hook.body = webhook["secret"], 500, b"on fire"
    world.hook.received.clear()
    world.publish(type="broken", metadata={"part": "pump"})
    failed = world.delivery(webhook, "failed")
    assert (failed["answer"], failed.get("sentAt")) == ("500 on fire", None)
    world.hook.status, world.hook.body = 200, b"ok"
    path = f"{DELIVERIES}/{failed['id']}"
    assert world.stack.call("POST", f"{path}/resend")[0] == 200
    assert world.delivery(webhook, "sent")["answer"] == "200 ok"
    assert len({uid for _, uid in world.hook.received}) == 1
    for _ in range(2):
        status, after = world.stack.call("POST", f"{path}/acknowledge")
        assert (status, after["status"]) == (200, "acknowledged")


@pytest.mark.parametrize(
    "target",
    [
        "http://10.0.0.1/hook",
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:10.0.0.1]/hook",
        "http://[::1]/hook",
        "http://167772161/hook",
        "http://localhost/hook",
        "http://no-such-host.invalid/hook",
        "ftp://example.org/hook",
        "not a url",
    ],
)
def test_a_webhook_reaches_nothing_inside(world: World, target: str) -> None:
    """422 when it is saved, made or changed, with the field's name: private, link-local, mapped, decimal, by name."""
    body = {"name": "inside", "channel": "webhook", "target": target}
    status, problem = world.stack.call("POST", SUBSCRIPTIONS, body)
    assert (status, [error["loc"] for error in problem["errors"]]) == (422, ["target"])
    outside = world.subscribe("webhook", world.hook.url, enabled=False)
    path = f"{SUBSCRIPTIONS}/{outside['id']}"
    assert world.stack.call("PATCH", path, {"target": target})[0] == 422
    assert world.stack.call("GET", path)[1]["target"] == world.hook.url
    assert world.stack.call("DELETE", path)[0] == 204


def test_viewers_look_and_change_nothing(world: World) -> None:
    """They may list subscriptions and deliveries, and try templates."""
    token = world.stack.token_of("viewer")
    webhook = world.subscribe("webhook", world.hook.url, enabled=False)
    path = f"{SUBSCRIPTIONS}/{webhook['id']}"
    refused = [
        ("POST", SUBSCRIPTIONS, {"name": "mine", "channel": "email", "target": "a@example.org"}),
        ("PATCH", path, {"name": "mine"}),
        ("POST", f"{path}/rotate-secret", None),
        ("DELETE", path, None),
        ("POST", f"{DELIVERIES}/1/resend", None),
        ("POST", "/api/v1/notifications", {"type": "maintenance"}),
    ]
    assert [world.stack.call(*request, token=token)[0] for request in refused] == [403] * len(refused)
    for allowed in (SUBSCRIPTIONS, path, DELIVERIES):
        assert world.stack.call("GET", allowed, token=token)[0] == 200
    preview = {"channel": "email", "subjectTemplate": "{{ metadata.severity }}"}
    status, made = world.stack.call("POST", f"{SUBSCRIPTIONS}/preview", preview, token=token)
    assert (status, made["subject"]) == (200, "critical")


def test_an_own_notification_is_heard_and_read(world: World, tmp_path: Path) -> None:
    """A browser hears it, the ledger has it once though it was published twice, and each user has a read cursor."""
    device = world.stack.demo["devices"][1]["uuid"]
    with client(
        tmp_path / "io", "node", "watch.js", world.stack.demo["socketIoUrl"], world.stack.token, device
    ) as browser:
        eventually(lambda: any(o["event"] == "subscribed" and o["body"]["ok"] for o in browser.objects()))
        for _ in range(2):
            world.publish(uuid="m-1", type="maintenance", deviceUuid=device, metadata={"at": "22:00"})
        world.publish(uuid="m-2", type="maintenance", deviceUuid=device, metadata={"at": "23:00"})

        def heard() -> list[Any]:
            return [o["body"] for o in browser.objects() if o["event"] == "maintenance"]

        eventually(lambda: len(heard()) >= 2)
        eventually(lambda: len(world.ledger("maintenance")) >= 2)
        assert [n["id"] for n in heard()] == [n["id"] for n in world.ledger("maintenance")]
    first, second = world.ledger("maintenance")
    assert (first["metadata"], first["deviceUuid"]) == ({"at": "22:00"}, device)
    cursor = "/api/v1/notifications/read-cursor"
    assert world.stack.call("PUT", cursor, {"id": first["id"]}) == (200, {"id": first["id"], "unread": 1})
    assert world.stack.call("PUT", cursor, {"id": second["id"]}) == (200, {"id": second["id"], "unread": 0})
    assert world.stack.call("PUT", cursor, {"id": first["id"]}) == (200, {"id": second["id"], "unread": 0})
    assert world.stack.call("GET", cursor) == (200, {"id": second["id"], "unread": 0})
    status, problem = world.stack.call("POST", "/api/v1/notifications", {"type": "device-state-change"})
    assert (status, problem["errors"][0]["loc"]) == (422, "type")


def test_watch_goes_on_where_it_was_left(world: World) -> None:
    """What came behind `after`, then what comes, each once and in order, bursts too."""
    for number in range(250):
        world.publish(type="counted", metadata={"number": number})

    async def watched() -> list[int]:
        target = f"127.0.0.1:{world.stack.environment['AEMOS_NOTIFY_GRPC_PORT']}"
        credentials = (("authorization", f"Bearer {world.stack.token}"),)
        async with grpc.aio.insecure_channel(target) as channel:
            stub = notification_pb2_grpc.NotifyServiceStub(channel)
            after = eventually(lambda: world.ledger("counted"))[0]["id"]
            request = notification_pb2.WatchRequest(after=after)
            return await _followed(world, stub.Watch(request, metadata=credentials, timeout=60))

    assert asyncio.run(watched()) == list(range(1, 300))


async def _followed(world: World, call: Any) -> list[int]:
    found: list[int] = []
    async for notification in call:
        found.append(int(notification.metadata["number"]))
        if len(found) == 249:  # all there was; now for what comes
            for number in range(250, 300):
                await asyncio.to_thread(world.publish, type="counted", metadata={"number": number})
        if len(found) == 299:
            call.cancel()
            break
    return found


def test_a_report_is_mailed_with_its_pictures(world: World) -> None:
    """A scheduled chain's report: a page whose charts are pictures in the mail, and the table beside it."""
    sensor, before = world.stack.demo["devices"][1]["sensorUuid"], len(world.inbox.mails)
    assert [world.stack.send(value, 1)[0] for value in (20.0, 21.0)] == [201, 201]
    config = {"action": "generateReport", "title": "Daily", "period": "today", "sensorUUIDs": [sensor]}
    made = {"type": "action", "name": "report", "config": config | {"emailTo": ["ops@example.org"]}}
    body = {"name": "daily", "nodes": [made], "scheduleEnabled": True, "cronExpression": "@yearly"}
    status, chain = world.stack.call("POST", "/api/v1/rule-chains", body)
    assert status == 201, chain
    schedule = f"/api/v1/schedules/{chain['id']}"
    eventually(lambda: world.stack.call("GET", schedule)[0] == 200)
    assert world.stack.call("POST", f"{schedule}/run")[0] == 200
    (mail,) = eventually(lambda: [m for m in world.inbox.mails[before:] if m["Subject"] == "Daily"])
    parts = {part.get_content_type(): part for part in mail.walk()}
    assert mail["To"] == "ops@example.org"
    assert parts["image/png"].get_content().startswith(b"\x89PNG")
    assert f"cid:{parts['image/png']['Content-ID'].strip('<>')}" in parts["text/html"].get_content()
    assert sensor in parts["text/csv"].get_content()
    assert parts["text/csv"].get_filename() == "report.csv"


def test_the_guide_works(world: World, tmp_path: Path) -> None:
    """Its receiver verifies what comes, and its watcher tells what was missed."""
    page = (Path(__file__).parents[2] / "docs/notifications.md").read_text(encoding="utf-8")
    grpc_port, hook_port = world.stack.environment["AEMOS_NOTIFY_GRPC_PORT"], str(free_port())
    receiver, watcher = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    receiver = receiver.replace("8026", hook_port).replace("127.0.0.1", "127.0.0.9")
    webhook = world.subscribe("webhook", f"http://127.0.0.9:{hook_port}/", filter={"eventTypes": ["guide"]})
    with (
        client(tmp_path / "hook", sys.executable, "-c", receiver, webhook["secret"]) as received,
        client(
            tmp_path / "watch", sys.executable, "-c", watcher.replace("50054", grpc_port), world.stack.token, "0-1"
        ) as watched,
    ):
        eventually(lambda: _listens("127.0.0.9", int(hook_port)))
        world.publish(type="guide", metadata={"page": 1})
        notification = eventually(lambda: world.ledger("guide"))[0]
        eventually(lambda: f"msg_{webhook['id']}_{notification['id']} {{'type': 'guide'" in received.text())
        eventually(lambda: f"{notification['id']} guide" in watched.text())


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0
