"""How assertions move an alarm."""

from __future__ import annotations

from aemos_rules.alarms import CLEARED, AlarmAssertion, AlarmRow, What, fold
from aemos_rules.domain import Reading
from hypothesis import given
from hypothesis import strategies as st

severities = st.sampled_from([CLEARED, "critical", "minor"])


def asserted(severity: str, at: int, reading_id: int = 1) -> AlarmAssertion:
    reading = Reading(reading_id, 1, 7, "d", 3, "s", 5, "temperature", "number", 21.5, at, b"")
    return AlarmAssertion("too-warm", severity, "too warm", 11, reading)


def test_it_is_raised_gets_worse_and_is_cleared() -> None:
    """Each step is one change; saying the same again is none."""
    steps = [asserted(s, at) for at, s in enumerate(["minor", "minor", "critical", CLEARED, CLEARED], start=1)]
    _, changes = fold(AlarmRow(), steps)
    assert [(c.what, c.severity) for c in changes] == [
        (What.RAISED, "minor"),
        (What.SEVERITY, "critical"),
        (What.CLEARED, "critical"),
    ]


def test_a_late_reading_neither_raises_nor_clears() -> None:
    """What was measured before the last assertion counts for nothing."""
    mark, changes = fold(AlarmRow(4, "minor", (100, 9, 11)), [asserted(CLEARED, 99), asserted("critical", 50)])
    assert (mark, changes) == ((100, 9, 11), [])


@given(st.lists(st.tuples(severities, st.integers(1, 20), st.integers(1, 50)), max_size=30))
def test_a_repeated_job_changes_nothing(steps: list[tuple[str, int, int]]) -> None:
    """Whatever was folded once is ignored the second time, and raises and clears alternate."""
    assertions = [asserted(*step) for step in steps]
    mark, changes = fold(AlarmRow(), assertions)
    severity = next((c.severity if c.what is not What.CLEARED else CLEARED for c in reversed(changes)), CLEARED)
    assert fold(AlarmRow(1, severity, mark), assertions) == (mark, [])
    ends = [c.what for c in changes if c.what is not What.SEVERITY]
    assert all(what is (What.RAISED, What.CLEARED)[index % 2] for index, what in enumerate(ends))
