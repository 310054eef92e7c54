"""Facts about what is logged."""

from __future__ import annotations

import io
import json
import logging

from aemos_core import logs


def test_long_records_are_json() -> None:
    """What is too long is cut, and each line can still be read."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.Logger("tested")
    logger.addHandler(handler)
    handler.setFormatter(logs.formatter("tested"))
    for length in range(1_900, 4_010, 5):
        logger.warning("%s", "a" * length + "\\" * 50 + "\u202e😀" * 50, extra={"cause": "b" * 9_000})
    try:
        raise ValueError("c" * 9_000)
    except ValueError:
        logger.exception("%s", "d" * 9_000)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == 423
    assert max(len(value) for line in lines for value in line.values()) <= 2_001
