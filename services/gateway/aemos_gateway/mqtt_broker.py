"""amqtt 0.12.1 behind our own listener: it keeps the sessions, we authenticate, cut packets and acknowledge.

Replaced in amqtt, and held by tests/unit/test_library_contract_amqtt.py: the module global
`amqtt.broker.BrokerProtocolHandler`, of which `init_from_connect`, `start` and `wait_disconnect` (all public) are
overridden. So amqtt's reader loop, its flows of PUBLISH, its subscriptions, its broadcast and its wills never run.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import amqtt.broker
from amqtt.broker import Broker
from amqtt.contexts import BrokerConfig, ListenerConfig, ListenerType
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.plugins.base import BaseAuthPlugin
from amqtt.session import Session

from aemos_gateway.mqtt_connection import Connection

LISTENER = "default"
ADMITTED = "aemos.admitted"
"""Attribute of the sessions that `new_session` makes."""
SESSION_EXPIRY_S = 3600
"""How long a session that is to be kept is kept without a connection."""


class Door(Protocol):
    """Who lets connections in."""

    async def admit(self, connection: Connection) -> Session:
        """The session of a connection that proved who it is; MQTTError after it was answered that it did not."""

    def enter(self, connection: Connection, session: Session) -> None:
        """The CONNACK is written: packets may come."""

    async def gone(self, connection: Connection) -> None:
        """Returns when the connection has ended."""


class Peer:
    """What amqtt takes for its reader: only a way to the connection and to the door."""

    def __init__(self, connection: Connection, door: Door) -> None:
        self.connection = connection
        self.door = door

    def feed_eof(self) -> None:
        """amqtt's readers have it."""


class DeviceHandler(BrokerProtocolHandler):  # type: ignore[misc]  # amqtt is untyped
    """amqtt's handler of one connection, without its reader loop."""

    @classmethod
    async def init_from_connect(cls, reader: Any, writer: Any, plugins_manager: Any, loop: Any = None) -> Any:
        """Proves the device before the broker looks a session up."""
        return cls(plugins_manager, loop=loop), await reader.door.admit(reader.connection)

    async def start(self) -> None:
        """Instead of a reader loop: the connection pushes."""
        self.reader.door.enter(self.reader.connection, self.session)

    async def wait_disconnect(self) -> None:
        """Until the connection is gone, however it went. The will is ours, so amqtt need not know."""
        await self.reader.door.gone(self.reader.connection)


class OnlyAdmitted(BaseAuthPlugin):  # type: ignore[misc]  # amqtt is untyped
    """amqtt lets nobody in of whom no plugin says yes: here, whose session `new_session` made."""

    async def authenticate(self, *, session: Session) -> bool:
        """Whether a device was proven."""
        return ADMITTED in session.attributes


def new_session(key: str, clean: bool) -> Session:
    """An amqtt session for a proven device. Keep-alive and will stay 0: both are ours."""
    session = Session()
    session.client_id = key
    session.clean_session = clean
    session.attributes[ADMITTED] = True
    return session


@asynccontextmanager
async def open_broker() -> AsyncIterator[Broker]:
    """A broker without a listener of its own; `connected` hands it connections."""
    logging.getLogger("amqtt").setLevel(logging.ERROR)  # one line of ours for a refusal, not three of amqtt's
    amqtt.broker.BrokerProtocolHandler = DeviceHandler
    broker = Broker(
        BrokerConfig(
            listeners={LISTENER: ListenerConfig(type=ListenerType.EXTERNAL)},
            plugins={f"{__name__}.{OnlyAdmitted.__name__}": {}},
            session_expiry_interval=SESSION_EXPIRY_S,
        )
    )
    await broker.start()
    try:
        yield broker
    finally:
        await broker.shutdown()


async def connected(broker: Broker, connection: Connection, door: Door) -> None:
    """Lives as long as the connection."""
    await broker.external_connected(Peer(connection, door), connection, LISTENER)
