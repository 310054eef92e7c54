"""Facts about which readings get a trace."""

from __future__ import annotations

import pytest
from aemos_core import telemetry


@pytest.mark.parametrize(("per_second", "in_ten_seconds"), [(20, 220), (1, 11), (0.5, 5), (0.1, 1), (0, 0)])
def test_new_traces_have_a_rate(per_second: float, in_ten_seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one below 1; of any second no more than twice the rate."""
    now = 100.0
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: now)
    traces = telemetry._NewTraces(per_second)
    taken = 0
    for step in range(1, 1_001):
        now = 100 + step / 100
        taken += sum(traces.take() for _ in range(3))
    assert taken == pytest.approx(in_ten_seconds, abs=1)
