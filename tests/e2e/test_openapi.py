"""Every operation of the page at /openapi.json is asked odd things: the answers are those that it names, never 500."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.support.stack import Stack, running

EACH = 25
INTEGERS = [0, 1, 2, -1, 2**31 - 1, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 9999999999999999]
TEXTS = [
    "",
    "a",
    "x" * 201,
    "x" * 5_000,
    "\u202eabc",
    "😀",
    "null",
    "'; DROP TABLE x;--",
    "%00",
    "\r\n",
    "../..",
    "a b",
]
TEXTS += ["temperature", "asc", "avg", "1h", "Europe/Berlin", "0 0 * * * *", "9" * 19, "1-1", "a@b.c", "value > 1"]
TIMES = ["2026-01-20T10:30:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "9999-12-31T23:59:59Z"]
OTHERS = [None, True, 1, -1, 1.5, "x", [], {}, [[]], {"a": 1}, 2**64, 1e308]
SIMPLE: dict[str | None, list[Any]] = {
    **dict.fromkeys(("integer", "int32", "int64"), INTEGERS),
    **{"string": TEXTS, "date-time": TIMES, "boolean": [True, False], "number": [1.5, -1e308]},
}
LEFT_OUT = {"Logout", "RotateSigningKey"}
"""They would end the session that asks."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    var = tmp_path_factory.mktemp("var")
    with running(var, AEMOS_DEMO_DEVICES="2") as stack:
        yield stack
        log = (var / "log").read_text(encoding="utf-8", errors="replace")
        assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]


class Odd:
    """Values of a schema and, as often as `share` says, others."""

    def __init__(self, page: dict[str, Any], random_: random.Random) -> None:
        self._schemas = page["components"]["schemas"]
        self._random = random_
        self.share = 0.0

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        """One of this schema, or not."""
        if self._random.random() < self.share:
            return self._random.choice(OTHERS)
        if "$ref" in schema:
            schema = self._schemas[schema["$ref"].rsplit("/", 1)[1]]
        if "oneOf" in schema:
            return self.value(self._random.choice(schema["oneOf"]), depth)
        if schema.get("type") == "array":
            return [self.value(schema["items"], depth + 1) for _ in range(self._random.choice([0, 1, 1, 2]))]
        if schema.get("type") == "object":
            return self._object(schema, depth)
        return self._random.choice(SIMPLE.get(schema.get("format", schema.get("type")), OTHERS))

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        fields = schema.get("properties", {"x": {}, "site": {"type": "string"}})
        kept = {name: of for name, of in fields.items() if depth < 6 and self._random.random() < 0.8}
        return {name: self.value(of, depth + 1) for name, of in kept.items()}

    def one_of(self, *choices: Any) -> Any:
        return self._random.choice(choices)

    def text(self, schema: dict[str, Any]) -> str:
        """As a parameter says it."""
        value = self.value(schema)
        return value if isinstance(value, str) else json.dumps(value)


def asked(odd: Odd, path: str, operation: dict[str, Any], device: dict[str, Any]) -> dict[str, Any]:
    """Path, parameters and body of a request, half of the time for something that exists."""
    query = []
    for parameter in operation.get("parameters", []):
        name, schema = parameter["name"], parameter["schema"]
        if parameter["in"] == "path":
            known = odd.one_of(odd.text(schema), "1", device["uuid"])
            path = path.replace(f"{{{name}}}", quote(known, safe="")[:3_000] or "1")
        elif odd.one_of(True, False):
            query.append((name, odd.text(schema.get("items", schema))))
    request: dict[str, Any] = {"url": path, "params": query}
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        request["content"] = json.dumps(odd.value(schema)).encode()
    return request


def wrong(operation: dict[str, Any], schemas: dict[str, Any], answer: httpx.Response) -> str:
    """What the page does not say of an answer, or the word of nobody."""
    status, kind = answer.status_code, answer.headers.get("content-type", "").partition(";")[0]
    said = operation["responses"].get(str(status), operation["responses"]["default"] if status >= 400 else None)
    if status >= 500 or said is None:
        return f"{status}"
    content = said.get("content", {})
    if bool(answer.content) != bool(content) or (content and kind not in content and "*/*" not in content):
        return f"{kind} of {len(answer.content)} bytes"
    if not kind.endswith("json"):
        return ""
    return misfit(answer.json(), content[kind]["schema"], schemas)


KINDS = {"integer": int, "number": (int, float), "boolean": bool, "string": str, "array": list, "object": dict}


def misfit(value: Any, schema: dict[str, Any], schemas: dict[str, Any], place: str = "") -> str:
    """Where a value is none of its schema; empty when it is one."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rsplit("/", 1)[1]]
    if "oneOf" in schema:
        return min((misfit(value, one, schemas, place) for one in schema["oneOf"]), key=len)
    if "type" in schema and not isinstance(value, KINDS[schema["type"]]):
        return f"{place}: {value!r} is no {schema['type']}"
    if isinstance(value, dict) and (missing := set(schema.get("required", ())) - value.keys()):
        return f"{place}: without {missing}"
    parts: list[tuple[Any, Any, str]] = []
    if isinstance(value, dict) and "properties" in schema:
        fields = schema["properties"]
        parts = [(item, fields.get(name), f"{place}.{name}") for name, item in value.items()]
    elif isinstance(value, list) and "items" in schema:
        parts = [(item, schema["items"], f"{place}.{index}") for index, item in enumerate(value)]
    found = (f"{at} is not named" if of is None else misfit(item, of, schemas, at) for item, of, at in parts)
    return next(filter(None, found), "")


def test_the_page_says_what_is_answered(stack: Stack) -> None:
    """Whatever is asked: a status and a body of the operation, or a problem; no 500, and no traceback in the log."""
    found, device = [], stack.demo["devices"][0]
    with httpx.Client(base_url=stack.demo["httpUrl"], timeout=20) as client:
        page = client.get("/openapi.json").json()
        odd = Odd(page, random.Random(7))
        for path, item in page["paths"].items():
            for verb, operation in item.items():
                if operation["operationId"] in LEFT_OUT:
                    continue
                token = device["token"] if operation["operationId"].startswith("SendReading") else stack.token
                for attempt in range(EACH):
                    odd.share = (0.0, 0.02, 0.2)[attempt % 3]
                    request = asked(odd, path, operation, device)
                    answer = client.request(verb, headers={"Authorization": f"Bearer {token}"}, **request)
                    if mistake := wrong(operation, page["components"]["schemas"], answer):
                        found.append((operation["operationId"], str(request)[:300], mistake[:300], answer.text[:200]))
    assert found == []
