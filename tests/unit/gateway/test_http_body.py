"""Bodies that come slowly, never, in pieces or inflated."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import pytest
from aemos_core.errors import AemosError, Kind
from aemos_gateway import http_body, problems


class Client:
    """Sends these parts, and after them nothing more unless the last one ends the body."""

    def __init__(self, *parts: bytes, ends: bool = True) -> None:
        self._messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": part, "more_body": True} for part in parts
        ]
        if ends:
            self._messages[-1]["more_body"] = False

    async def receive(self) -> dict[str, Any]:
        if not self._messages:
            await asyncio.Event().wait()
        return self._messages.pop(0)


async def refused(client: Client) -> AemosError:
    with pytest.raises(AemosError) as error:
        await http_body.read(client.receive, 10)
    return error.value


async def test_parts_make_a_body() -> None:
    """However many there are."""
    assert await http_body.read(Client(b"[1").receive, 10) == b"[1"
    assert await http_body.read(Client(b"[1", b",2", b"]").receive, 10) == b"[1,2]"


@pytest.mark.parametrize("parts", [(), (b"[1,",)])
async def test_a_body_that_never_begins_or_ends_is_408(
    monkeypatch: pytest.MonkeyPatch, parts: tuple[bytes, ...]
) -> None:
    """The task goes on as if it had never been cancelled."""
    monkeypatch.setattr(http_body, "BODY_SECONDS", 0.01)
    error = await refused(Client(*parts, ends=False))
    assert (error.kind, problems.problem(error)[0]) == (Kind.MALFORMED, 408)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_who_cancels_is_heard() -> None:
    """A client that goes away, or a process that stops, is no late body."""
    reading = asyncio.create_task(http_body.read(Client(ends=False).receive, 10))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_too_large_is_known_before_the_end() -> None:
    """Nobody waits for the rest of it."""
    assert (await refused(Client(b"x" * 6, b"x" * 5, ends=False))).kind is Kind.TOO_LARGE


def test_inflating_stops_at_the_limit() -> None:
    """A hundred megabytes of nothing are never there."""
    bomb = gzip.compress(b"0" * 10_000_000)
    for most, kind in ((9_999_999, Kind.TOO_LARGE), (1_000, Kind.TOO_LARGE)):
        with pytest.raises(AemosError) as error:
            http_body.inflate(bomb, most)
        assert error.value.kind is kind
    assert len(http_body.inflate(bomb, 10_000_000)) == 10_000_000
    for broken in (bomb[:-1], bomb + b"x", b"no gzip", b""):
        with pytest.raises(AemosError) as error:
            http_body.inflate(broken, 10_000_000)
        assert error.value.kind is Kind.MALFORMED
