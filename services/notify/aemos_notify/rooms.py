"""Who hears what: clients by room, and events encoded once for all who hear them.

Not the library's rooms: its manager spends a task and a queue entry on each recipient (40 us a delivery, here 7) and
looks through every room at each disconnect. Clients see no difference.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Protocol, TypeVar

from engineio.packet import MESSAGE, Packet
from websockets.frames import Frame, Opcode

K = TypeVar("K")
V = TypeVar("V")


class Event:
    """Socket.IO events of the default namespace, `(name, JSON of the payload)` each, ready to be written."""

    def __init__(self, events: Iterable[tuple[str, str]]) -> None:
        # Socket.IO protocol 5: 2 is EVENT, followed by the JSON array of name and payload.
        self._texts = [f"2[{json.dumps(name)},{payload}]" for name, payload in events]

    @cached_property
    def frames(self) -> bytes:
        """As WebSocket frames (RFC 6455, 5.2); 4 is Engine.IO's MESSAGE."""
        return b"".join(Frame(Opcode.TEXT, b"4" + text.encode()).serialize(mask=False) for text in self._texts)

    @cached_property
    def packets(self) -> Sequence[Packet]:
        """As Engine.IO packets."""
        return [Packet(MESSAGE, text) for text in self._texts]


class Member(Protocol):
    """Who may be in a room."""

    @property
    def organization_id(self) -> int:
        """Whose notifications and readings it may hear."""

    def send(self, event: Event) -> None:
        """Hands the event over; never waits."""

    def notify(self, event: Event) -> None:
        """As `send`, for a notification: after those that the member missed before."""


class Rooms:
    """Members by room."""

    def __init__(self) -> None:
        self._members: dict[str, set[Member]] = {}
        self._rooms: dict[Member, set[str]] = {}

    @property
    def empty(self) -> bool:
        """Nobody is in any room."""
        return not self._members

    def occupied(self, room: str) -> bool:
        """Whether anybody is in it."""
        return room in self._members

    def of(self, member: Member) -> frozenset[str]:
        """The rooms a member is in."""
        return frozenset(self._rooms.get(member, ()))

    def join(self, room: str, member: Member) -> None:
        """Joining twice is joining once."""
        self._members.setdefault(room, set()).add(member)
        self._rooms.setdefault(member, set()).add(room)

    def leave(self, room: str, member: Member) -> None:
        """Leaving twice is leaving once."""
        if room in self._rooms.get(member, ()):
            _take_out(self._members, room, member)
            _take_out(self._rooms, member, room)

    def leave_all(self, member: Member) -> None:
        """Takes the member out of every room."""
        for room in self.of(member):
            self.leave(room, member)

    def members(self, *rooms: str) -> set[Member]:
        """Who is in any of the rooms, each once."""
        return set().union(*(self._members.get(room, ()) for room in rooms))


def of_organization(members: Iterable[Member], organization_id: int) -> list[Member]:
    """Those of an organization, 0 for any: a uuid or id that one gave up may be another's now."""
    return [member for member in members if not organization_id or member.organization_id == organization_id]


def _take_out(index: dict[K, set[V]], key: K, value: V) -> None:
    index[key].discard(value)
    if not index[key]:
        del index[key]
