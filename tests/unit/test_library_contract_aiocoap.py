"""What aemos_gateway.coap_datagram.check keeps from aiocoap 0.4.17 is still what it must not see."""

from importlib.metadata import version

import pytest
from aiocoap import Message
from aiocoap.numbers import ContentFormat, OptionNumber
from aiocoap.numbers.constants import TransportTuning


def test_version_is_the_one_that_was_read() -> None:
    """Another version is to be read again before the pin moves."""
    assert version("aiocoap") == "0.4.17"


def test_times_of_retransmission_are_those_of_the_rfc() -> None:
    """RFC 7252, 4.8."""
    tuning = TransportTuning
    assert (tuning.ACK_TIMEOUT, tuning.ACK_RANDOM_FACTOR, tuning.MAX_RETRANSMIT) == (2, 1.5, 4)


def test_odd_numbers_are_kept_for_ever() -> None:
    """Why coap_datagram.check bounds them: when this fails, the library was mended."""
    for numbers, odd in ((OptionNumber, 65_001), (ContentFormat, 65_002)):
        numbers(odd)
        assert odd in numbers._value2member_map_


def test_text_options_are_decoded_without_a_net() -> None:
    """Why coap_datagram.check looks at their UTF-8: they are decoded on the way, and raise what no caller expects."""
    with pytest.raises(UnicodeDecodeError):
        Message.decode(b"\x40\x01\x00\x01\xb1\xff")
