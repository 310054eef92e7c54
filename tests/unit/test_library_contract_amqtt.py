"""What aemos_gateway.mqtt_broker replaces in amqtt 0.12.1 is there, and amqtt does with it what was read."""

import inspect
from importlib.metadata import version

import amqtt.broker
from aemos_gateway.mqtt_broker import DeviceHandler
from aemos_gateway.mqtt_connection import Connection
from amqtt.adapters import WriterAdapter
from amqtt.broker import Broker
from amqtt.mqtt.connect import ConnectPacket
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.mqtt.protocol.handler import ProtocolHandler
from amqtt.session import Session


def test_version_is_the_one_that_was_read() -> None:
    """Another version is to be read again before the pin moves."""
    assert version("amqtt") == "0.12.1"


def test_broker_looks_the_handler_up_in_its_module() -> None:
    """So replacing the module global replaces the handler of every connection."""
    assert hasattr(amqtt.broker, "BrokerProtocolHandler")
    source = inspect.getsource(Broker._initialize_client_session)
    assert "BrokerProtocolHandler.init_from_connect(reader, writer, self.plugins_manager)" in source
    assert source.index("init_from_connect") < source.index("_delete_session")
    assert "except MQTTError" in source


def test_overridden_methods_are_the_librarys() -> None:
    """All three are public, and called as they are overridden."""
    for name in ("init_from_connect", "start", "wait_disconnect"):
        assert hasattr(BrokerProtocolHandler, name)
        ours, theirs = getattr(DeviceHandler, name), getattr(BrokerProtocolHandler, name)
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
    assert "await handler.start()" in inspect.getsource(Broker._handle_client_session)
    assert "handler.wait_disconnect()" in inspect.getsource(Broker._client_message_loop)


def test_handler_stops_without_a_reader_task() -> None:
    """`start` makes none, so `stop` must not wait for one."""
    assert "if self._reader_task and" in inspect.getsource(ProtocolHandler.stop)
    assert "self._reader_task: asyncio.Task[None] | None = None" in inspect.getsource(ProtocolHandler.__init__)


def test_connack_is_written_before_the_handler_starts() -> None:
    """Packets are taken from `start` on, so nothing precedes the CONNACK."""
    source = inspect.getsource(Broker._handle_client_session)
    steps = ["_authenticate(", "handler.attach(", "mqtt_connack_authorize(", "handler.start()", "_client_message_loop("]
    assert [source.index(step) for step in steps] == sorted(source.index(step) for step in steps)


def test_connection_is_a_whole_writer() -> None:
    """It is not derived from amqtt's class, so its methods are compared."""
    assert {name for name in WriterAdapter.__abstractmethods__ if not hasattr(Connection, name)} == set()


def test_session_has_what_is_used() -> None:
    """Attributes of ours, messages under way, the next packet id, and the will that stays unset."""
    session = Session()
    assert (session.attributes, dict(session.inflight_out), session.next_packet_id) == ({}, {}, 1)
    assert (session.will_flag, session.keep_alive) == (False, 0)


def test_nobody_is_admitted_whom_no_plugin_admits() -> None:
    """So a session that `new_session` did not make stays outside."""
    source = inspect.getsource(Broker._authenticate)
    assert "if len(results) < 1:" in source
    assert "if all(results):" in source


def test_packets_are_parsed_without_waiting() -> None:
    """The parser is a coroutine that a buffer never suspends (mqtt_frames runs it to its end at once)."""
    assert inspect.iscoroutinefunction(ConnectPacket.from_stream)
