"""Facts about device states: they move only forward in event time, whatever order and repetition jobs come in."""

import random

import pytest
from aemos_rules.domain import NEVER, Reading, StateAssertion, fold
from hypothesis import given
from hypothesis import strategies as st

NORMAL = ("normal", NEVER)


def assertion(value: str, at: int = 1000, reading_id: int = 1, chain: int = 1) -> StateAssertion:
    reading = Reading(reading_id, 1, 42, "abc-123", 7, "sensor-abc-123", 5, "temperature", "number", 1.0, at, b"")
    return StateAssertion(8, value, chain, reading)


def in_event_time(marks: dict[tuple[int, int, int], str]) -> list[StateAssertion]:
    return [assertion(value, *mark) for mark, value in sorted(marks.items())]


BATCHES = st.dictionaries(
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3)),
    st.sampled_from(["normal", "warning", "critical"]),
    max_size=20,
).map(in_event_time)


def test_another_value_is_a_change() -> None:
    """An assertion of another value is the new value, and a change holding the old one and the assertion."""
    warning = assertion("warning", 1000, 9876, 3)
    assert fold(*NORMAL, [warning]) == ("warning", (1000, 9876, 3), [("normal", warning)])


def test_an_equal_value_advances_the_watermark_only() -> None:
    """Asserting what already holds is no change, yet a reading before it is late from then on."""
    assert fold(*NORMAL, [assertion("normal", 2000)]) == ("normal", (2000, 1, 1), [])
    assert fold("normal", (2000, 1, 1), [assertion("warning", 1500)]) == ("normal", (2000, 1, 1), [])


@pytest.mark.parametrize("late", [(999, 99, 99), (1000, 4, 99), (1000, 5, 2), (1000, 5, 1)])
def test_at_or_before_the_watermark_is_ignored(late: tuple[int, int, int]) -> None:
    """Time, then reading, then chain decide; the same assertion again is not after itself."""
    known = ("warning", (1000, 5, 2))
    assert fold(*known, [assertion("normal", *late)]) == (*known, [])


@pytest.mark.parametrize("later", [(1001, 1, 1), (1000, 6, 1), (1000, 5, 3)])
def test_after_the_watermark_counts(later: tuple[int, int, int]) -> None:
    """A greater time, reading or chain moves the state."""
    value, mark, changes = fold("warning", (1000, 5, 2), [assertion("normal", *later)])
    assert (value, mark, len(changes)) == ("normal", later, 1)


def test_a_scheduled_assertion_stands_at_its_instant() -> None:
    """Without a reading the schedule's instant is the event time; without that it is refused, not lost."""
    _, mark, _ = fold(*NORMAL, [StateAssertion(8, "warning", 3, None, 5000)])
    assert mark == (5000, 0, 3)
    with pytest.raises(ValueError, match="instant"):
        fold(*NORMAL, [StateAssertion(8, "warning", 3, None)])


@given(BATCHES)
def test_repeating_a_batch_changes_nothing_further(batch: list[StateAssertion]) -> None:
    """A job that comes twice has its effects once."""
    *known, _ = fold(*NORMAL, batch)
    assert fold(*known, batch) == (*known, [])


@given(BATCHES, st.randoms(use_true_random=False))
def test_any_order_with_any_repetition_ends_the_same(batch: list[StateAssertion], chance: random.Random) -> None:
    """Final value and watermark are those of the greatest watermark, however assertions are shuffled and doubled."""
    mixed = batch + chance.choices(batch, k=len(batch)) if batch else []
    chance.shuffle(mixed)
    value, mark, _ = fold(*NORMAL, mixed)
    assert (value, mark) == fold(*NORMAL, batch)[:2]
    assert mark == max((each.watermark for each in batch), default=NEVER)
    assert value == (batch[-1].value if batch else "normal")


@given(BATCHES, st.integers(0, 20))
def test_cutting_a_batch_in_two_makes_no_difference(batch: list[StateAssertion], cut: int) -> None:
    """Jobs may hold any number of readings: values and changes are the same."""
    *first, early = fold(*NORMAL, batch[:cut])
    *second, late = fold(*first, batch[cut:])
    assert (*second, early + late) == fold(*NORMAL, batch)


@given(BATCHES)
def test_changes_form_a_chain(batch: list[StateAssertion]) -> None:
    """Each change starts from the value the one before left, and the last one leaves the final one."""
    value, _, changes = fold(*NORMAL, batch)
    values = ["normal", *(assertion.value for _, assertion in changes)]
    assert [old for old, _ in changes] == values[:-1]
    assert value == values[-1]
