"""The ports that tests give their servers."""

from tests.support.ports import Block


def test_one_installation_never_gets_a_port_twice() -> None:
    """Of a hundred ports, none repeats; drawn at random, one start in two hundred had the same port for two servers."""
    block = Block()

    assert len({block.free() for _ in range(100)}) == 100


def test_two_runs_of_the_tests_share_no_port() -> None:
    """Two blocks held at once have no port in common."""
    ours, theirs = Block(), Block()

    assert not {ours.free() for _ in range(100)} & {theirs.free() for _ in range(100)}
