"""Notifications from their feed to whoever is in a room."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aemos_core import telemetry
from aemos_core.notification_log import Published, heard_in

from aemos_notify.rooms import Event, Rooms, of_organization


class FanOut:
    """What the feed calls. Each of `noticed` hears the organization of each notification."""

    def __init__(self, rooms: Rooms, noticed: Sequence[Callable[[int], None]]) -> None:
        self._rooms = rooms
        self._noticed = noticed

    def deliver(self, published: Published) -> None:
        """A notification: its object goes out byte for byte, to each client once."""
        organization_id = published.organization_id
        if organization_id:
            for notice in self._noticed:
                notice(organization_id)
        found = self._rooms.members(*heard_in(organization_id, published.rooms))
        if found and (members := of_organization(found, organization_id)):
            with telemetry.child(telemetry.SPAN_EMIT, published.trace_context, {"clients": len(members)}):
                event = Event([(published.event, published.notification.decode())])
                for member in members:
                    member.notify(event)
