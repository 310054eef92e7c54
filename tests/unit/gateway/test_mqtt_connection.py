"""One connection among many: what it may take of the loop."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

import pytest
import uvloop
from aemos_gateway.mqtt_connection import Connection, Hold

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
    await until(lambda: len(heard) > count, 30)
    await until(lambda: transport.reading, 30)
    assert heard == [PINGREQ[0]] * count + [DISCONNECT[0]]
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_came_before_the_end_is_handled(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """A device sends more than is taken at once, says DISCONNECT and leaves: uvloop hears that before what is held is
    released."""
    with asyncio.Runner(loop_factory=loop) as runner:
        heard = runner.run(_heard_of_one_that_leaves(PINGREQ * 500 + DISCONNECT))
    assert heard == [PINGREQ[0]] * 500 + [DISCONNECT[0]]


async def _heard_of_one_that_leaves(packets: bytes) -> list[int]:
    made, heard, releasing = list[Connection](), list[int](), list[asyncio.Task[None]]()
    here, there = socket.socketpair()
    here.setblocking(False)
    with there:
        await asyncio.get_running_loop().connect_accepted_socket(lambda: Connection(made.append), here)
        there.sendall(connect())
        await made[0].connect_packet()

        async def release() -> None:
            for _ in range(3):  # from a step of a task, as after a commit
                await asyncio.sleep(0)
            made[0].release(Hold.WINDOW)

        def receive(header: int, _: bytes) -> None:
            heard.append(header)
            if len(heard) % 100 == 0:
                made[0].hold(Hold.WINDOW)
                releasing.append(asyncio.create_task(release()))

        made[0].open(receive, 0)
        there.sendall(packets)
    async with asyncio.timeout(5):
        await made[0].ended
    return heard
