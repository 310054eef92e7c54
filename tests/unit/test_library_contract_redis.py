"""What is overridden of redis 8.1 is as it was: a connection of redis.asyncio writes what `pack_command` returns."""

from importlib.metadata import version

import pytest
from aemos_core.redis_link import FastConnection, open_redis
from redis.asyncio import Connection
from redis.exceptions import DataError

LARGE = b"x" * 100_000


def test_version_is_the_one_that_was_read() -> None:
    """Another version is to be read again before the pin moves."""
    assert version("redis") == "8.1.0"


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "ä \U0001f600"),
        ("CONFIG GET", "save"),
        (b"SET", b"\0\r\n", "", 1, -(2**63), 0.1, 2.0, 1e30),
        ("SET", "key", LARGE, "and", LARGE, bytearray(b"mutable"), memoryview(b"seen")),
        ("HMGET", "hash", *map(str, range(1000))),
    ],
    ids=["text", "two words", "kinds", "large", "many"],
)
def test_the_bytes_are_those_of_the_library(command: tuple[bytes | str | float, ...]) -> None:
    """Of one command and of several."""
    ours, theirs = FastConnection(), Connection()
    assert b"".join(ours.pack_command(*command)) == b"".join(theirs.pack_command(*command))
    assert b"".join(ours.pack_commands([command] * 3)) == b"".join(theirs.pack_commands([command] * 3))


def test_what_is_no_text_or_number_is_refused() -> None:
    """As the library does."""
    for connection in (FastConnection(), Connection()):
        with pytest.raises(DataError):
            connection.pack_command("SET", "key", None)  # type: ignore[arg-type]


@pytest.mark.asyncio
async def test_our_clients_have_such_connections() -> None:
    """For TLS and Unix sockets the library takes its own."""
    async with open_redis("redis://:secret@localhost:1/2") as client:
        assert client.connection_pool.connection_class is FastConnection
