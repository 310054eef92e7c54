"""What aemos_gateway.coap_transport takes from inside aiocoap 0.4.17 is there and means what it meant."""

import inspect
import re
from importlib.metadata import version

from aiocoap import Context, Message
from aiocoap.messagemanager import MessageManager
from aiocoap.numbers import ContentFormat, OptionNumber
from aiocoap.tokenmanager import TokenManager
from aiocoap.transports.udp6 import MessageInterfaceUDP6, UDP6EndpointAddress


def parameters(function: object) -> list[str]:
    assert callable(function)
    return list(inspect.signature(function).parameters)


def test_version_is_the_one_that_was_read() -> None:
    """Another version is to be read again before the pin moves."""
    assert version("aiocoap") == "0.4.17"


async def test_message_layer_keeps_its_parts() -> None:
    """EdgeMessages replaces three methods and reads two tables of the message layer."""
    messages = MessageManager(TokenManager(Context()))
    assert messages._backlogs == {}
    assert messages._active_exchanges == {}
    assert parameters(messages._deduplicate_message) == ["message"]
    assert parameters(messages._store_response_for_duplicates) == ["message"]
    assert parameters(messages._continue_backlog) == ["remote"]
    assert parameters(messages._send_initially) == ["message", "messageerror_monitor"]
    assert 0 <= messages._next_message_id() < 1 << 16


def test_duplicates_are_asked_for_once_per_request() -> None:
    """Every request goes through the method that we replace, and what it sends through the other."""
    assert "if self._deduplicate_message(message) is True" in inspect.getsource(MessageManager.dispatch_message)
    assert "self._store_response_for_duplicates(message)" in inspect.getsource(MessageManager._send_initially)


def test_one_confirmable_message_per_remote() -> None:
    """A remote is in the backlogs exactly while a message to it is unacknowledged, and the next is sent by us."""
    assert "if message.remote not in self._backlogs:" in inspect.getsource(MessageManager._add_exchange)
    assert "message.mtype == CON and message.remote in self._backlogs" in inspect.getsource(MessageManager.send_message)
    assert "self._continue_backlog(message.remote)" in inspect.getsource(MessageManager._remove_exchange)
    uses = inspect.getsource(MessageManager).count("_continue_backlog(")
    assert uses == 2, "defined once and called once"
    assert "del self._backlogs[message.remote]" in inspect.getsource(MessageManager._retransmit)
    assert "self._backlogs.pop(remote, ())" in inspect.getsource(MessageManager.dispatch_error)


def test_udp_interface_keeps_its_parts() -> None:
    """EdgePort gives it a socket of ours, and calls it for each datagram."""
    received = ["self", "data", "ancdata", "flags", "address"]
    assert parameters(MessageInterfaceUDP6.datagram_msg_received) == received
    assert parameters(MessageInterfaceUDP6.__init__) == ["self", "ctx", "log", "loop"]
    assert parameters(UDP6EndpointAddress.__init__) == ["self", "sockaddr", "interface", "pktinfo"]
    assert "self._ctx.dispatch_message(message)" in inspect.getsource(MessageInterfaceUDP6)


def test_udp_interface_asks_three_things_of_its_socket() -> None:
    """DatagramSocket has them: sending, closing, and the socket itself; closing is answered by connection_lost."""
    source = inspect.getsource(MessageInterfaceUDP6)
    assert set(re.findall(r"self\.transport\.(\w+)", source)) == {"sendmsg", "close", "get_extra_info"}
    assert "self._shutting_down.set_result(None)" in inspect.getsource(MessageInterfaceUDP6.connection_lost)


def test_context_asks_its_site_for_one_thing() -> None:
    """Our Site has only `render_to_pipe`."""
    assert "self.serversite.render_to_pipe(pipe)" in inspect.getsource(Context._render_to_pipe)


def test_odd_numbers_are_kept_for_ever() -> None:
    """Why coap_datagram.check bounds them: when this fails, the library was mended."""
    for numbers, odd in ((OptionNumber, 65_001), (ContentFormat, 65_002)):
        numbers(odd)
        assert odd in numbers._value2member_map_


def test_text_options_are_decoded_without_a_net() -> None:
    """Why coap_datagram.check looks at their UTF-8: aiocoap raises from the datagram's callback."""
    source = inspect.getsource(MessageInterfaceUDP6.datagram_msg_received)
    assert "except error.UnparsableMessage" in source
    assert "UnicodeDecodeError" not in inspect.getsource(Message.decode)
