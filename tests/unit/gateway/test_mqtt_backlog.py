"""Sessions that are behind the notification log are brought level with it, whatever becomes of some of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from aemos_core.notification_log import BEGINNING, Logged, LogId
from aemos_gateway.mqtt_hearing import Backlog

from tests.support.redis_server import until


@dataclass(eq=False)
class FakeHearing:
    """A session that is behind until its first page."""

    organization_id: int
    room: str = "device-uuid-d"
    place: LogId | None = BEGINNING

    @property
    def takes_more(self) -> bool:
        return self.place is not None

    def page_begins(self) -> None:
        """Nothing overtakes it."""

    def missed(self, entry: Logged) -> None:
        self.place = entry.id

    def page_ends(self, place: LogId, *, is_last: bool) -> None:
        self.place = None


class FakeFeed:
    """Knows the end of the log once it is `found`."""

    def __init__(self) -> None:
        self.found = asyncio.Event()

    async def position(self, organization_id: int) -> LogId:
        await self.found.wait()
        return LogId(1, 1)


async def test_who_is_level_again_meanwhile_holds_nobody_up() -> None:
    """A session that subscribed anew while the end of the log was looked for is behind no more; another still is."""
    feed = FakeFeed()

    async def read(organization_id: int, after: LogId, upto: LogId, count: int) -> Sequence[Logged]:
        return []

    backlog = Backlog(feed, read)  # type: ignore[arg-type]
    anew, behind = FakeHearing(1), FakeHearing(2)
    backlog.put(anew)  # type: ignore[arg-type]
    backlog.put(behind)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    anew.place = None
    feed.found.set()
    await until(lambda: behind.place is None, 5)


async def test_an_organization_whose_log_does_not_answer_holds_no_other_up() -> None:
    """Each reads its own, a page at a time."""
    feed, never = FakeFeed(), asyncio.Event()
    feed.found.set()

    async def read(organization_id: int, after: LogId, upto: LogId, count: int) -> Sequence[Logged]:
        if organization_id == 1:
            await never.wait()
        return []

    backlog = Backlog(feed, read)  # type: ignore[arg-type]
    slow, other = FakeHearing(1), FakeHearing(2)
    backlog.put(slow)  # type: ignore[arg-type]
    backlog.put(other)  # type: ignore[arg-type]
    await until(lambda: other.place is None, 5)
    assert slow.place is not None
    await backlog.close()
