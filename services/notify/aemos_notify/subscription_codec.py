"""Messages of the contract to and from subscriptions and deliveries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aemos.v1 import notification_pb2, subscription_pb2
from aemos_core.identity import caller
from aemos_core.notification_log import LogId
from aemos_core.times import to_timestamp

from aemos_notify.subscription_store import AnyRow
from aemos_notify.subscriptions import Filter, Status, Subscription
from aemos_notify.templates import Message

_HOURLY = 60
_OPTIONAL = ("name", "enabled", "target", "subject_template", "body_template", "hourly_limit", "repeat_minutes")
_LISTS = ("event_types", "severities", "device_uuids", "state_values")


def _filter(message: subscription_pb2.NotificationFilter) -> Filter:
    lists = {name: tuple(getattr(message, name)) for name in _LISTS}
    return Filter(device_label=message.device_label, **lists)


def draft_from_pb(request: subscription_pb2.CreateSubscriptionRequest) -> Subscription:
    """A subscription to create, in the caller's organization."""
    return Subscription(
        id=0,
        organization_id=caller().organization_id,
        name=request.name,
        enabled=request.enabled if request.HasField("enabled") else True,
        channel=request.channel,
        target=request.target,
        filter=_filter(request.filter),
        subject_template=request.subject_template,
        body_template=request.body_template,
        hourly_limit=request.hourly_limit or _HOURLY,
        repeat_minutes=request.repeat_minutes,
    )


def changes_from_pb(request: subscription_pb2.UpdateSubscriptionRequest) -> dict[str, Any]:
    """The fields that an update gives."""
    changes = {field: getattr(request, field) for field in _OPTIONAL if request.HasField(field)}  # type: ignore[arg-type]
    return changes | ({"filter": _filter(request.filter)} if request.HasField("filter") else {})


def subscription_to_pb(found: Subscription, *, with_secret: bool = False) -> subscription_pb2.Subscription:
    """A subscription; its secret only where it is made."""
    wanted = found.filter
    return subscription_pb2.Subscription(
        id=found.id,
        name=found.name,
        enabled=found.enabled,
        channel=found.channel,
        target=found.target,
        filter=subscription_pb2.NotificationFilter(
            device_label=wanted.device_label, **{name: getattr(wanted, name) for name in _LISTS}
        ),
        subject_template=found.subject_template,
        body_template=found.body_template,
        hourly_limit=found.hourly_limit,
        repeat_minutes=found.repeat_minutes,
        secret=found.secret if with_secret else "",
        created_at=to_timestamp(found.created_at_ms),
    )


def delivery_to_pb(row: AnyRow) -> subscription_pb2.Delivery:
    """A delivery."""
    return subscription_pb2.Delivery(
        id=row.id,
        subscription_id=row.subscription_id,
        notification_id=str(LogId(row.ms, row.seq)),
        status=row.status,
        attempts=row.attempts,
        answer=_over(row.repeats) if row.status == Status.SUPPRESSED else row.answer,
        queued_at=to_timestamp(row.queued_at_ms),
        sent_at=None if row.sent_at_ms is None else to_timestamp(row.sent_at_ms),
    )


def _over(more: int) -> str:
    return f"over the hourly limit, with {more} more of this hour" if more else "over the hourly limit"


def preview_to_pb(made: Message, notification: Mapping[str, Any]) -> subscription_pb2.PreviewTemplateResponse:
    """What templates made of a notification."""
    answer = subscription_pb2.PreviewTemplateResponse(subject=made.subject, body=made.body)
    answer.notification.update(dict(notification))
    return answer


def cursor_to_pb(place: LogId, unread: int) -> notification_pb2.ReadCursor:
    """How far a user has read."""
    return notification_pb2.ReadCursor(id=str(place) if place != LogId() else "", unread=unread)
