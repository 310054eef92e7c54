"""Logging out: what was logged in to ends, everywhere, within five seconds (hard case 4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.stack import Stack, eventually, running

WITHIN_S = 5.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("var"), AEMOS_DEMO_DEVICES="1") as stack:
        yield stack


def login(stack: Stack) -> dict[str, Any]:
    status, tokens = stack.call("POST", "/api/v1/auth/login", stack.demo["login"], "")
    assert status == 200
    return tokens


def refresh(stack: Stack, tokens: dict[str, Any]) -> tuple[int, Any]:
    return stack.call("POST", "/api/v1/auth/refresh", {"refreshToken": tokens["refreshToken"]}, "")


def statuses(stack: Stack, tokens: dict[str, Any]) -> set[int]:
    """Of a call that ingest answers, and of one that rules does."""
    paths = ("/api/v1/devices", "/api/v1/rule-chains")
    return {stack.call("GET", path, None, tokens["accessToken"])[0] for path in paths}


def test_a_session_that_ended_is_refused_everywhere(stack: Stack) -> None:
    """Its access token and those refreshed from it answer 401, and it cannot be refreshed; another login goes on."""
    ours, theirs = login(stack), login(stack)
    status, refreshed = refresh(stack, ours)
    assert status == 200
    assert statuses(stack, ours) == statuses(stack, refreshed) == {200}
    assert stack.call("POST", "/api/v1/auth/logout", {}, ours["accessToken"]) == (200, {})
    eventually(lambda: statuses(stack, refreshed) == statuses(stack, ours) == {401}, WITHIN_S)
    assert refresh(stack, ours)[0] == refresh(stack, refreshed)[0] == 401
    assert statuses(stack, theirs) == {200}
