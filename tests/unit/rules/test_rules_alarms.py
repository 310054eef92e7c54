"""How assertions move an alarm."""

from __future__ import annotations

from aemos_rules.alarms import CLEARED, AlarmAssertion, What, happened
from aemos_rules.domain import NEVER, Reading, Watermark, fold
from hypothesis import given
from hypothesis import strategies as st

severities = st.sampled_from([CLEARED, "critical", "minor"])


def asserted(severity: str, at: int, reading_id: int = 1) -> AlarmAssertion:
    reading = Reading(reading_id, 1, 7, "d", 3, "s", 5, "temperature", "number", 21.5, at, b"")
    return AlarmAssertion("too-warm", severity, "too warm", 11, reading)


def folded(
    severity: str, mark: Watermark, assertions: list[AlarmAssertion]
) -> tuple[str, Watermark, list[tuple[What, str]]]:
    """The severity, how far it was asserted, and what happened; of a cleared alarm with what it was."""
    severity, mark, changes = fold(severity, mark, assertions)
    return severity, mark, [(happened(old, one.value), one.value or old) for old, one in changes]


def test_it_is_raised_gets_worse_and_is_cleared() -> None:
    """Each step is one change; saying the same again is none."""
    steps = [asserted(s, at) for at, s in enumerate(["minor", "minor", "critical", CLEARED, CLEARED], start=1)]
    assert folded(CLEARED, NEVER, steps)[2] == [
        (What.RAISED, "minor"),
        (What.SEVERITY, "critical"),
        (What.CLEARED, "critical"),
    ]


def test_a_late_reading_neither_raises_nor_clears() -> None:
    """What was measured before the last assertion counts for nothing."""
    known = ("minor", (100, 9, 11))
    assert folded(*known, [asserted(CLEARED, 99), asserted("critical", 50)]) == (*known, [])


@given(st.lists(st.tuples(severities, st.integers(1, 20), st.integers(1, 50)), max_size=30))
def test_a_repeated_job_changes_nothing(steps: list[tuple[str, int, int]]) -> None:
    """Whatever was folded once is ignored the second time, and raises and clears alternate."""
    assertions = [asserted(*step) for step in steps]
    severity, mark, changes = folded(CLEARED, NEVER, assertions)
    assert folded(severity, mark, assertions) == (severity, mark, [])
    ends = [what for what, _ in changes if what is not What.SEVERITY]
    assert all(what is (What.RAISED, What.CLEARED)[index % 2] for index, what in enumerate(ends))
