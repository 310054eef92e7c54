"""docs/readings.md shows what may be sent."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from aemos_gateway.readings import MAX_BATCH_BYTES, MAX_READING_BYTES, MOST_READINGS, decode
from aemos_gateway.settings import GatewaySettings

PAGE = (Path(__file__).parents[3] / "docs/readings.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("example", re.findall(r"```json\n(.*?)\n```", PAGE, re.DOTALL))
def test_every_example_is_understood(example: str) -> None:
    """As readings of temperature, and what comes with it."""
    assert decode(example.encode()).readings[0].variable_name == "temperature"


def test_its_limits_are_the_real_ones() -> None:
    """Whoever changes one changes the page."""
    settings = GatewaySettings(service_secret="x")
    assert f"a reading {MAX_READING_BYTES // 1024} KiB; an array {MAX_BATCH_BYTES // 2**20} MiB" in PAGE
    assert f"Up to {MOST_READINGS:,} readings" in PAGE
    assert f"{settings.device_readings_per_second:,} readings a second from a device" in PAGE
    assert f"{settings.organization_readings_per_second:,} from an organization" in PAGE
