"""Notifications from their feed to whoever is in a room."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aemos_core import telemetry
from aemos_core.notification_log import Published, heard_in

from aemos_notify.rooms import Event, Rooms


class Deliveries:
    """What the feed calls. Each of `noticed` hears the organization of each notification."""

    def __init__(self, rooms: Rooms, noticed: Sequence[Callable[[int], None]]) -> None:
        self._rooms = rooms
        self._noticed = noticed

    def deliver(self, published: Published) -> None:
        """A notification: its object goes out byte for byte, to each client once."""
        if published.organization_id:
            for notice in self._noticed:
                notice(published.organization_id)
        if members := self._rooms.members(*heard_in(published.organization_id, published.rooms)):
            with telemetry.child(telemetry.SPAN_EMIT, published.trace_context, {"clients": len(members)}):
                event = Event([(published.event, published.notification.decode())])
                for member in members:
                    member.notify(event)
