"""What bounds a client: its allowance of messages and the count of what it has not read."""

from aemos_notify.websocket import Allowance, Unread
from hypothesis import given
from hypothesis import strategies as st


def test_allowance_is_a_burst_and_a_rate() -> None:
    """A rested client may send a burst; then its rate counts, and rest never saves more than a burst."""
    allowance = Allowance(10, 5, now=0)
    assert [allowance.take(0) for _ in range(6)] == [True] * 5 + [False]
    assert allowance.take(0.1)
    assert not allowance.take(0.1)
    assert [allowance.take(1_000) for _ in range(6)] == [True] * 5 + [False]


@given(st.lists(st.floats(0, 10), max_size=200))
def test_allowance_is_never_exceeded(pauses: list[float]) -> None:
    """In any stretch of time at most burst + rate x seconds messages pass."""
    allowance, now, passed = Allowance(10, 5, now=0), 0.0, 0
    for pause in pauses:
        now += pause
        passed += allowance.take(now)
        assert passed <= 5 + 10 * now + 1e-6


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9), st.integers(0, 200)), min_size=1, max_size=60))
def test_unread_are_the_messages_that_the_buffer_still_has(writes: list[tuple[int, int, int]]) -> None:
    """Whatever the client reads between the writes, all whose bytes wait are counted, and none that is gone."""
    unread, buffer, written = Unread(), 0, []
    for size, count, read in writes:
        buffer = max(0, buffer - read)
        found = unread.add(size, count, buffer)
        buffer += size
        written.append((size, count))
        expected, rest = 0, buffer
        for each, messages in reversed(written):
            if rest <= 0:
                break
            expected, rest = expected + messages, rest - each
        assert found == expected
