"""REST for the `aemos` command: whom to call, as whom, and errors in words."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from aemos_client.settings_page import var_dir

_SECONDS = 20.0
_PAGE = 1_000


class Refused(Exception):
    """The server said no; the text is its answer, a line for each field at fault."""


class Rest:
    """Calls of one user."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """The JSON of the answer. Raises Refused, and httpx.HTTPError when nobody answers."""
        answer = self._client.request(method, path, json=body, params=query)
        if answer.is_success:
            return answer.json()
        problem = answer.json() if "json" in answer.headers.get("content-type", "") else {}
        errors = [f"{error['loc']}: {error['message']}" for error in problem.get("errors", ())]
        raise Refused("\n".join(errors) or problem.get("detail") or f"{method} {path}: {answer.status_code}")

    def pages(self, path: str, plural: str, **query: Any) -> Iterator[Any]:
        """Every item of a list."""
        token = ""
        while True:
            page = self.call("GET", path, pageSize=_PAGE, pageToken=token, **query)
            yield from page[plural]
            token = page["nextPageToken"]
            if not token:
                return


@contextmanager
def open_rest(url: str = "", token: str = "") -> Iterator[Rest]:
    """REST at `url` with a user's access token, from AEMOS_URL and AEMOS_TOKEN when absent, and at last the demo's."""
    url, token = url or os.environ.get("AEMOS_URL", ""), token or os.environ.get("AEMOS_TOKEN", "")
    known: Mapping[str, Any] = {}
    if not (url and token):
        try:
            known = json.loads((var_dir() / "demo.json").read_text(encoding="utf-8"))
        except OSError:
            raise Refused("give --url and --token, or AEMOS_URL and AEMOS_TOKEN") from None
    with httpx.Client(base_url=url or known["httpUrl"], timeout=_SECONDS) as client:
        if not token:
            token = Rest(client).call("POST", "/api/v1/auth/login", known["login"])["accessToken"]
        client.headers["authorization"] = f"Bearer {token}"
        yield Rest(client)
