"""One connection among many: what it may take of the loop."""

import asyncio
from typing import Any, cast

from aemos_gateway.mqtt_connection import Connection

from tests.support.fake_mqtt_ports import DISCONNECT, PINGREQ, connect
from tests.support.redis_server import until


class FakeTransport:
    """Says whether it is read from."""

    reading = True

    def get_extra_info(self, name: str) -> None:
        """Nobody is there."""

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


async def test_a_flood_from_one_device_leaves_the_others_their_turn() -> None:
    """What came in one read is not handled in one turn of the loop; all of it is, in order, before more is read."""
    count, heard = 200_000, list[int]()
    transport = FakeTransport()
    connection = Connection(lambda _: None)
    connection.connection_made(cast(Any, transport))
    connection.data_received(connect())
    assert await connection.connect_packet()
    connection.open(lambda header, _: heard.append(header), 0)
    assert transport.reading
    connection.data_received(PINGREQ * count + DISCONNECT)
    assert 0 < len(heard) < count
    assert not transport.reading
    await until(lambda: len(heard) > count, 5)
    await until(lambda: transport.reading, 5)
    assert heard == [PINGREQ[0]] * count + [DISCONNECT[0]]
    assert asyncio.all_tasks() == {asyncio.current_task()}
