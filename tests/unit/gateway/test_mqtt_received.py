"""No PUBLISH of QoS 2 is stored twice between its PUBREC and its PUBREL."""

import pytest
from aemos_gateway.mqtt_frames import PUBREC_HEADER, ProtocolError
from aemos_gateway.mqtt_telemetry import MOST_UNRELEASED, Received

ONE = b"\0\1"


def test_a_stored_one_is_answered_again_but_not_stored_again() -> None:
    """Until PUBREL frees its packet id."""
    received, sent = Received(), list[bytes]()
    assert received.begin(ONE, sent.append)
    received.settled(ONE)
    assert not received.begin(ONE, sent.append)
    assert sent == [PUBREC_HEADER + ONE] * 2
    received.release(ONE)
    assert received.begin(ONE, sent.append)


def test_one_sent_again_while_it_is_stored_is_answered_on_the_new_connection() -> None:
    """The old connection is gone; the device asked on another one."""
    received, old, new = Received(), list[bytes](), list[bytes]()
    assert received.begin(ONE, old.append)
    assert not received.begin(ONE, new.append)
    received.settled(ONE)
    assert (old, new) == ([], [PUBREC_HEADER + ONE])


def test_one_that_failed_is_new_the_next_time() -> None:
    """It is not stored, so the device's next attempt has to be."""
    received, sent = Received(), list[bytes]()
    received.begin(ONE, sent.append)
    received.failed(ONE)
    assert received.begin(ONE, sent.append)
    assert sent == []


def test_release_does_not_free_what_is_being_stored() -> None:
    """A PUBREL before its PUBREC must not let the same id be stored again."""
    received, sent = Received(), list[bytes]()
    received.begin(ONE, sent.append)
    received.release(ONE)
    assert not received.begin(ONE, sent.append)
    received.release(b"\0\7")


def test_a_client_that_never_releases_is_bounded() -> None:
    """What a session keeps has an end."""
    received = Received()
    for number in range(1, MOST_UNRELEASED + 1):
        received.begin(number.to_bytes(2), lambda _: None)
    with pytest.raises(ProtocolError):
        received.begin((MOST_UNRELEASED + 1).to_bytes(2), lambda _: None)
