"""docs/history.md shows what is answered."""

from __future__ import annotations

import json
import re
from pathlib import Path

from aemos.v1 import data_stream_pb2
from aemos_gateway.json_codec import from_json, to_json

PAGE = (Path(__file__).parents[3] / "docs/history.md").read_text(encoding="utf-8")


def test_aggregates_are_as_shown() -> None:
    """The example is an answer, field by field."""
    found = re.search(r'^    (\{"readings".*?)\n\n', PAGE, re.DOTALL | re.MULTILINE)
    assert found
    shown = json.loads(found[1])
    answer = data_stream_pb2.QueryReadingsResponse()
    assert from_json(answer, shown) == []
    assert to_json(answer) == shown
