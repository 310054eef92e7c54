"""docs/events.md shows what is sent."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aemos.v1.job_pb2 import Announcement, CommittedReading, ReadingSource
from aemos_core.announce import _arguments
from aemos_core.notification_log import LogId, logged
from aemos_core.times import parse_rfc3339
from aemos_ingest.connectivity import connectivity_changed
from aemos_notify import codec
from aemos_notify.live_readings import DATA_STREAM
from aemos_rules import announcements
from aemos_rules.domain import Notice, Reading, RuleChain

PAGE = (Path(__file__).parents[2] / "docs/events.md").read_text(encoding="utf-8")
ROW = SimpleNamespace(
    id=7,
    organization_id=1,
    device_uuid="abc-123",
    device_id=42,
    name="temperatureAlert",
    type="freezer-too-warm",
    severity="critical",
    active=True,
    acknowledged_at_ms=None,
    message="over -10 degrees for 5 minutes",
)
READING = Reading(9876, 1, 42, "abc-123", 7, "s-abc-123", 5, "t", "number", 30.5, 1_768_905_000_000, b"")
ANNOUNCED = [
    announcements.state_change(ROW, "normal", "warning", b""),
    announcements.alarm_changed(ROW, "raised", b""),
    connectivity_changed(ROW, True, "connected", parse_rfc3339("2026-01-20T10:30:01.200Z")),
    announcements.message_of(Notice("key", "30.5 degrees in the cold store", READING, READING.received_at_ms)),
    announcements.chain_looped(
        RuleChain(42, 1, "ping", True, 1, (), False, "", "UTC"), "node 'to pong': a loop: 5 chains led to one another"
    ),
]


def example(event: str) -> dict[str, Any]:
    """The JSON under the event's heading."""
    found = re.search(rf"^### {event}\n.*?```json\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    assert found, event
    body = json.loads(found[1])
    assert isinstance(body, dict)
    return body


def sent(announcement: Announcement) -> dict[str, Any]:
    """What the announcement is on the wire."""
    arguments = _arguments(announcement)
    fields = {b"n": arguments[6].encode(), b"e": arguments[9].encode(), b"r": arguments[10].encode()}
    body = json.loads(logged(b"1768905001234-0", fields).notification)
    assert isinstance(body, dict)
    return body


@pytest.mark.parametrize("announcement", ANNOUNCED, ids=lambda a: a.event)
def test_notifications_are_as_shown(announcement: Announcement) -> None:
    """Field by field, in order, with the values of the example's own state and alarm."""
    shown, body = example(announcement.event), sent(announcement)
    assert list(body) == list(shown)
    assert body["metadata"] == shown["metadata"]
    assert list(body["metadata"]) == list(shown["metadata"])
    assert {k: type(v) for k, v in body.items()} == {k: type(v) for k, v in shown.items()}
    assert body["type"] == announcement.event == shown["type"]


def test_readings_are_as_shown() -> None:
    """The payload of data-stream, but for the moment it is sent."""
    of = ReadingSource(
        device_id=42,
        device_uuid="abc-123",
        sensor_uuid="s-abc-123",
        variable_name="temperature",
        variable_type="number",
    )
    reading = CommittedReading(id=9876, number=25.5, text="25.5", received_at_ms=1_768_905_000_000)
    body = json.loads(codec.reading_to_json(of, reading, 1_768_905_000_050))
    shown = example(DATA_STREAM)
    assert body == shown
    assert list(body) == list(shown)


@pytest.mark.parametrize("event", ["device-connectivity", "rule-run"])
def test_every_notification_has_the_same_frame(event: str) -> None:
    """Type, device, metadata, timestamp, traceId and id, in this order."""
    assert list(example(event)) == list(example("device-state-change"))
    assert example(event)["type"] == event


def test_ids_on_the_page_are_ids() -> None:
    """They grow as shown."""
    ids = re.findall(r'"id": "(\d+)-(\d+)"', PAGE)
    places = [LogId(int(ms), int(seq)) for ms, seq in ids]
    assert len(places) == 5
    assert places == sorted(places)
