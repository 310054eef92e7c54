"""What must be true afterwards, whatever happened in between."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

from tests.faults.load import History

Rows = Callable[[str], list[tuple[str, ...]]]
"""Runs a statement; {ingest} and {rules} stand for the databases."""


def wait_until_settled(rows: Rows, within_s: float) -> float:
    """Seconds until every stored reading was judged: its outbox row lives until the worker's receipt."""
    began = time.monotonic()
    while rows("SELECT 1 FROM {ingest}.outbox LIMIT 1"):
        assert time.monotonic() - began < within_s, "readings were stored and never judged"
        time.sleep(0.1)
    return time.monotonic() - began


def check(histories: Sequence[History], rows: Rows) -> int:
    """Every acknowledged reading is stored once, nothing else is, in the order sent; states are what they say.

    Returns how many are stored.
    """
    stored = 0
    for history in histories:
        readings = _stored(history, rows)
        values = [value for _, _, value in readings]
        doubled = [value for value, times in Counter(values).items() if times > 1]
        assert not doubled, (history.device["uuid"], doubled)
        lost = set(history.acknowledged) - set(values)
        assert not lost, (history.device["uuid"], sorted(lost))
        assert not set(values) - set(history.sent)
        positions = [history.sent.index(value) for value in values]
        assert positions == sorted(positions), "one device's readings were stored out of order"
        _check_state(history, readings, rows)
        stored += len(readings)
    return stored


def _stored(history: History, rows: Rows) -> list[tuple[int, int, float]]:
    """(time, id, value) in order of ids."""
    found = rows(
        "SELECT d.received_at_ms, d.id, d.value FROM {ingest}.data_stream d "
        "JOIN {ingest}.telemetry_data v ON v.id = d.telemetry_data_id "
        f"WHERE v.sensor_id = {history.device['sensorId']} ORDER BY d.id"
    )
    return [(int(at), int(id_), float(value)) for at, id_, value in found]


def _check_state(history: History, readings: Sequence[tuple[int, int, float]], rows: Rows) -> None:
    """The state is the last reading's, and no change was made twice, or by what is not stored.

    A reading that was judged after a later one changes nothing, so not every stored one has its change.
    """
    device = history.device["id"]
    (state,) = rows(f"SELECT id, value FROM {{rules}}.device_state WHERE device_id = {device}")
    done = rows(f"SELECT data_stream_id FROM {{rules}}.device_state_instance WHERE device_state_id = {state[0]}")
    causes = [int(reading) for (reading,) in done]
    assert len(set(causes)) == len(causes), "one reading changed the state twice"
    assert set(causes) <= {id_ for _, id_, _ in readings}
    if readings:
        assert state[1] == ("warning" if readings[-1][2] > 25 else "normal")
