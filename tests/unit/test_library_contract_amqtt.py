"""What aemos_gateway.mqtt_frames leans on in amqtt 0.12.1 is there."""

import inspect
from importlib.metadata import version

from amqtt.mqtt.connect import ConnectPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket


def test_version_is_the_one_that_was_read() -> None:
    """Another version is to be read again before the pin moves."""
    assert version("amqtt") == "0.12.1"


def test_packets_are_parsed_without_waiting() -> None:
    """The parser is a coroutine that a buffer never suspends (mqtt_frames runs it to its end at once)."""
    for packet in (ConnectPacket, SubscribePacket, UnsubscribePacket):
        assert inspect.iscoroutinefunction(packet.from_stream)
