"""What came lately is remembered for its time, within its bound."""

from aemos_gateway.coap_recent import Recent


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_remembered_for_one_to_two_lifetimes() -> None:
    """A value is there for at least `seconds`, and gone after twice that, even if nothing was put meanwhile."""
    clock = Clock()
    recent: Recent[int, str] = Recent(100, 60, clock)
    clock.now = 59
    recent.put(1, "a")
    clock.now = 59 + 60
    assert recent.get(1) == "a"
    clock.now = 59 + 120
    assert recent.get(1) is None
    assert len(recent) == 0


def test_bounded() -> None:
    """However much comes, at most two generations are kept, and the newest is among them."""
    recent: Recent[int, int] = Recent(10, 60, Clock())
    for number in range(1000):
        recent.put(number, number)
        assert len(recent) <= 20
        assert recent.get(number) == number


def test_the_newest_value_counts() -> None:
    """A value that was put again in the next generation hides the old one."""
    clock = Clock()
    recent: Recent[int, str] = Recent(10, 60, clock)
    recent.put(1, "pending")
    clock.now = 61
    recent.put(1, "answered")
    assert recent.get(1) == "answered"
