"""What a will may name."""

import pytest
from aemos_gateway.mqtt_topics import Topics

TOPICS = Topics.of("abc-123")


@pytest.mark.parametrize(
    ("topic", "allowed"),
    [
        ("aemos/devices/abc-123/notifications", True),
        ("aemos/devices/abc-123/status", True),
        ("aemos/devices/abc-123/telemetry", False),
        ("aemos/devices/abc-123/", False),
        ("aemos/devices/abc-123/#", False),
        ("aemos/devices/abc-123/a+b", False),
        ("aemos/devices/abc-1234/notifications", False),
        ("aemos/devices/def-456/notifications", False),
        ("$SYS/broker", False),
        ("", False),
    ],
)
def test_a_will_names_the_devices_own_topics(topic: str, allowed: bool) -> None:
    """Never telemetry, never a wildcard, never another device."""
    assert TOPICS.may_will(topic) is allowed
