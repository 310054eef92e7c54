"""What notify takes from inside python-socketio 5.18.1, python-engineio 4.15.1 and uvicorn 0.54.0 is as it was."""

import inspect
import re
from importlib.metadata import version

import engineio
import pytest
import socketio
import uvicorn
from engineio.async_socket import AsyncSocket
from socketio.base_manager import BaseManager
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT
from websockets.streams import StreamReader


def in_order(source: str, *steps: str) -> bool:
    """Whether the steps are in the source, one behind the other."""
    places = [source.index(step) for step in steps]
    return places == sorted(places)


@pytest.mark.parametrize(
    ("library", "read"),
    [("python-socketio", "5.18.1"), ("python-engineio", "4.15.1"), ("uvicorn", "0.54.0"), ("websockets", "15.0.1")],
)
def test_version_is_the_one_that_was_read(library: str, read: str) -> None:
    """Another version is to be read again before the pin moves."""
    assert version(library) == read


def test_server_asks_for_its_parts() -> None:
    """The engine's class, and the three handlers that are overridden, are looked up as methods of the server."""
    source = inspect.getsource(socketio.AsyncServer.__mro__[1].__init__)
    for line in (
        "self._engineio_server_class()(**engineio_options)",
        "self.eio.on('connect', self._handle_eio_connect)",
        "self.eio.on('message', self._handle_eio_message)",
    ):
        assert line in source, line
    assert "await self._handle_event(eio_sid" in inspect.getsource(socketio.AsyncServer._handle_eio_message)
    for name in ("_handle_eio_connect", "_handle_eio_message", "_handle_event", "shutdown"):
        assert inspect.iscoroutinefunction(getattr(socketio.AsyncServer, name)), name
    assert list(inspect.signature(socketio.AsyncServer._handle_event).parameters)[1:] == [
        "eio_sid",
        "namespace",
        "id",
        "data",
    ]
    assert socketio.AsyncServer.reserved_events == ["connect", "disconnect"]


def test_connect_packet_follows_the_handler_at_once() -> None:
    """CONNECT is queued when the handler has returned: what the handler leaves for the next turn comes after it."""
    source = inspect.getsource(socketio.AsyncServer._handle_connect)
    _, _, after = source.partition("if success is False:")
    assert in_order(after, "elif not self.always_connect:", "packet.CONNECT, {'sid': sid}", "self.manager.connect(sid")
    assert "await" not in source.partition("success = False\n\n")[2].partition("if success")[0]


def test_engine_socket_has_its_queue_before_the_connect_event() -> None:
    """The socket is in `sockets`, with a queue of `create_queue`, when the server hears of it."""
    source = inspect.getsource(engineio.AsyncServer._handle_connect)
    assert in_order(source, "AsyncSocket(self, sid)", "self.sockets[sid] = s", "self._trigger_event('connect'")
    assert "self.queue = self.server.create_queue()" in inspect.getsource(AsyncSocket.__mro__[1].__init__)


def test_writer_waits_with_empty_hands() -> None:
    """While the writer is in `queue.get` it has written all it took: OutQueue.idle relies on it."""
    source = inspect.getsource(AsyncSocket._websocket_handler)
    assert in_order(source, "packets = await self.poll()", "for pkt in packets:", "await ws.send(pkt.encode())")
    poll = inspect.getsource(AsyncSocket.poll)
    assert poll.count("self.queue.get()") == 1
    assert in_order(poll, "await asyncio.wait_for(", "self.queue.get()", "self.queue.get_nowait()")


def test_a_client_that_leaves_is_forgotten_in_these_places() -> None:
    """Its rooms (everybody's and its own, for nobody asks the library for others), callbacks, and what was pending."""
    source = inspect.getsource(socketio.AsyncManager.basic_disconnect)
    assert set(re.findall(r"self\.(\w+)", source)) == {
        "rooms",
        "basic_leave_room",
        "callbacks",
        "pending_connect",
        "pending_disconnect",
    }
    entered = inspect.getsource(BaseManager.pre_connect)
    assert in_order(entered, "basic_enter_room(sid, namespace, None", "basic_enter_room(sid, namespace, sid")
    assert entered.count("basic_enter_room(") == 2


def test_queue_is_ended_by_none() -> None:
    """None ends the writer, and the reader waits for that."""
    assert "await self.queue.put(None)" in inspect.getsource(AsyncSocket._websocket_handler)
    assert "if packets == [None]:" in inspect.getsource(AsyncSocket.poll)


def test_packet_is_encoded_as_the_frame_is() -> None:
    """An Engine.IO message is "4" and its text: a frame written directly equals a queued packet."""
    assert engineio.packet.Packet(engineio.packet.MESSAGE, '2["e",{}]').encode() == '42["e",{}]'
    sent = socketio.packet.Packet(socketio.packet.EVENT, ["e", {"a": 1}], namespace="/").encode()
    assert sent == '2["e",{"a":1}]'


def test_frame_is_serialized_unmasked() -> None:
    """A server's frame, as a client's parser reads it."""
    reader = StreamReader()
    reader.feed_data(Frame(Opcode.TEXT, b"4x").serialize(mask=False))
    parsing = Frame.parse(reader.read_exact, mask=CLIENT is None)
    with pytest.raises(StopIteration) as parsed:
        next(parsing)
    assert parsed.value.value == Frame(Opcode.TEXT, b"4x")


def test_websocket_protocol_keeps_its_parts() -> None:
    """The attributes and methods that DirectWebSocket touches are there."""
    source = inspect.getsource(WebSocketsSansIOProtocol)
    for name in ("conn", "queue", "frames", "transport", "loop", "writable", "handshake_initiated"):
        assert f"self.{name}" in source, name
    for name in ("handshake_complete", "close_sent", "disconnected"):
        assert f"self.{name} = False" in source, name
    for name in ("handle_connect", "send_receive_event_to_app", "handle_parser_exception", "keepalive_timeout"):
        assert callable(getattr(WebSocketsSansIOProtocol, name)), name
    assert inspect.iscoroutinefunction(WebSocketsSansIOProtocol.send)


def test_extension_is_there_before_the_application() -> None:
    """The scope is filled, and the application started as a task, within handle_connect: so the task sees more."""
    source = inspect.getsource(WebSocketsSansIOProtocol.handle_connect)
    assert in_order(
        source, "self.handshake_initiated = True", '"extensions": {', "self.loop.create_task(self.run_asgi())"
    )


def test_every_message_passes_one_place() -> None:
    """Text, binary and fragmented messages all go through send_receive_event_to_app with their parts in `frames`."""
    for name in ("handle_text", "handle_bytes", "handle_cont"):
        assert "self.send_receive_event_to_app()" in inspect.getsource(getattr(WebSocketsSansIOProtocol, name))
    assert "self.frames" in inspect.getsource(WebSocketsSansIOProtocol.send_receive_event_to_app)


def test_signals_are_captured_in_one_place() -> None:
    """uvicorn's server touches signals only in capture_signals, around serving."""
    source = inspect.getsource(uvicorn.Server)
    assert source.count("signal.signal(") == inspect.getsource(uvicorn.Server.capture_signals).count("signal.signal(")
    assert "with self.capture_signals():" in inspect.getsource(uvicorn.Server.serve)
