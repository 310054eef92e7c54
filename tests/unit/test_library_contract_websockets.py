"""What notify takes from inside websockets 15.0.1 is as it was."""

import inspect
from importlib.metadata import version

import pytest
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import ServerConnection
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.streams import StreamReader


def test_version_is_the_one_that_was_read() -> None:
    """Another version is to be read again before the pin moves."""
    assert version("websockets") == "15.0.1"


def test_frame_is_serialized_unmasked() -> None:
    """A server's frame, as a client's parser reads it."""
    reader = StreamReader()
    reader.feed_data(Frame(Opcode.TEXT, b"4x").serialize(mask=False))
    parsing = Frame.parse(reader.read_exact, mask=False)
    with pytest.raises(StopIteration) as parsed:
        next(parsing)
    assert parsed.value.value == Frame(Opcode.TEXT, b"4x")


def test_a_connection_keeps_its_parts() -> None:
    """The attributes and methods that notify's Connection touches are there; writing past the library breaks nothing,
    for it keeps nothing of what it wrote."""
    assert "self.protocol" in inspect.getsource(ServerConnection.__init__)
    assert "self.paused: bool = False" in inspect.getsource(Connection.__init__)
    assert "self.transport = transport" in inspect.getsource(Connection.connection_made)
    assert "self.paused = True" in inspect.getsource(Connection.pause_writing)
    assert "self.paused = False" in inspect.getsource(Connection.resume_writing)
    assert "self.paused = False" in inspect.getsource(Connection.connection_lost)
    assert "if self.paused:" in inspect.getsource(Connection.drain)
    assert "self.transport.write(data)" in inspect.getsource(Connection.send_data)


def test_who_says_goodbye_is_not_open_any_more() -> None:
    """From the close frame on, whoever sent it, the connection counts as leaving."""
    protocol = ServerProtocol()
    protocol.state = State.OPEN
    protocol.send_close(1013, "too slow")
    assert protocol.state is State.CLOSING
    assert len(protocol.data_to_send()) == 1
