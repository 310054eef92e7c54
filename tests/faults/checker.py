"""What must be true afterwards, whatever happened in between."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import redis

from tests.faults.load import History

Rows = Callable[[str], list[tuple[str, ...]]]
"""Runs a statement; {ingest}, {rules} and {notify} stand for the databases."""


_UNJUDGED = "SELECT relay, COUNT(*) FROM {ingest}.outbox WHERE kind = 'evaluate_readings' GROUP BY relay"
"""Announcements are kept for ten minutes whatever becomes of them."""


def wait_until_settled(rows: Rows, within_s: float, queue_url: str = "") -> float:
    """Seconds until every stored reading was judged: its outbox row lives until the worker's receipt.

    With a queue's URL also until nothing is in it.
    """
    began = time.monotonic()
    while (left := rows(_UNJUDGED)) or (left := _queued(queue_url)):
        assert time.monotonic() - began < within_s, f"stored and never judged: {left}"
        time.sleep(0.2)
    return time.monotonic() - began


def wait_until_told(histories: Sequence[History], rows: Rows, changes: int, within_s: float) -> None:
    """Every change of a state is in the ledger of notifications, and none twice."""
    uuids = ", ".join(f"'{history.device['uuid']}'" for history in histories)
    query = (
        f"SELECT COUNT(*) FROM {{notify}}.notification WHERE type = 'device-state-change' AND device_uuid IN ({uuids})"
    )
    deadline = time.monotonic() + within_s
    while (told := int(rows(query)[0][0])) < changes:
        assert time.monotonic() < deadline, f"{changes} changes, {told} told"
        time.sleep(0.2)
    assert told == changes


def _queued(url: str) -> list[tuple[str, ...]]:
    if not url:
        return []
    with redis.Redis.from_url(url) as client:
        keys = [key for key in client.scan_iter("*rule-engine-events*.msgs", 1000) if b".XQ" not in key]
        return [(key.decode(), str(client.hlen(key))) for key in keys]


def check(histories: Sequence[History], rows: Rows) -> tuple[int, int]:
    """Every acknowledged reading is stored once, nothing unsent is, ids in the order sent; each effect came once.

    Returns how many are stored, and how many changes of state they made.
    """
    stored = changes = 0
    for history in histories:
        readings = _stored(history, rows)
        _check_stored(history, readings)
        changes += _check_effects(history, readings, rows)
        stored += len(readings)
    return stored, changes


def _stored(history: History, rows: Rows) -> list[tuple[int, float]]:
    """(id, value) in order of ids."""
    found = rows(
        "SELECT d.id, d.value FROM {ingest}.data_stream d "
        "JOIN {ingest}.telemetry_data v ON v.id = d.telemetry_data_id "
        f"WHERE v.sensor_id = {history.device['sensorId']} ORDER BY d.id"
    )
    return [(int(id_), float(value)) for id_, value in found]


def _check_stored(history: History, readings: Sequence[tuple[int, float]]) -> None:
    device, ids = history.device["uuid"], {value: id_ for id_, value in readings}
    doubled = [value for value, times in Counter(value for _, value in readings).items() if times > 1]
    assert not doubled, f"{device}: stored twice: {doubled}"
    lost = [value for value in history.acknowledged if value not in ids]
    assert not lost, f"{device}: acknowledged and not stored: {lost}"
    assert ids.keys() <= set(history.sent), f"{device}: stored and never sent"
    swapped = [pair for pair in pairwise(history.acknowledged) if ids[pair[0]] >= ids[pair[1]]]
    assert not swapped, f"{device}: stored out of order: {swapped}"


def _check_effects(history: History, readings: Sequence[tuple[int, float]], rows: Rows) -> int:
    """The instances of the device's state are what its readings, one after another, make of it.

    A reading that was never acknowledged may have been judged after a later one; then it changes nothing.
    """
    ((state, value),) = rows(f"SELECT id, value FROM {{rules}}.device_state WHERE device_id = {history.device['id']}")
    made = rows(
        f"SELECT data_stream_id, value FROM {{rules}}.device_state_instance WHERE device_state_id = {state} ORDER BY id"
    )
    instances = [(int(reading), new) for reading, new in made]
    judged, acknowledged = {reading for reading, _ in instances}, set(history.acknowledged)
    counted = [(id_, v) for id_, v in readings if v in acknowledged or id_ in judged]
    expected = fold(counted)
    wrong = [pair for pair in zip(expected, instances, strict=False) if pair[0] != pair[1]][:1]
    assert instances == expected, (
        f"{history.device['uuid']}: {len(expected)} effects expected, {len(instances)} found, first: {wrong}"
    )
    assert value == (expected[-1][1] if expected else "normal")
    return len(instances)


def fold(readings: Sequence[tuple[int, float]]) -> list[tuple[int, str]]:
    """The changes that the demo's two chains make of a device's readings: (reading id, new value)."""
    changes: list[tuple[int, str]] = []
    for id_, value in readings:
        state = "warning" if value > 25 else "normal"
        if state != (changes[-1][1] if changes else "normal"):
            changes.append((id_, state))
    return changes
