"""What users make of subscriptions, their secrets and their read cursors, on both databases."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aemos.v1 import notification_pb2
from aemos.v1.subscription_pb2 import NotificationFilter as Filter
from aemos_core.errors import AemosError, Kind, invalid
from aemos_core.identity import Caller, set_caller
from aemos_core.jobs import MINUTE_MS
from aemos_core.notification_log import LogId
from aemos_core.times import now_ms
from aemos_notify import store, subscription_store
from sqlalchemy import select

from tests.support.notify_worker import NotifyWorker


async def test_a_subscription_goes_with_its_deliveries(notify: NotifyWorker) -> None:
    """However many they are."""
    made = await notify.subscribe(hourly_limit=3_600)
    await notify.happen(2_500)
    await notify.call("DeleteSubscription", id=made.id)
    assert await notify.statuses() == []
    await notify.work()
    assert notify.channel.letters == []
    async with notify.database.read() as connection:
        actions = (await connection.execute(select(subscription_store.audit_rows.c.action))).scalars().all()
    assert actions == ["subscription.create", "subscription.delete"]


async def test_a_target_that_is_gone_may_be_turned_off(notify: NotifyWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target is looked at when it is given, and not when something else of its subscription changes."""

    async def gone(target: str) -> None:
        raise invalid("target", "the host cannot be found")

    made = await notify.subscribe()
    monkeypatch.setattr(notify.channel, "check_target", gone)
    assert not (await notify.call("UpdateSubscription", id=made.id, enabled=False)).enabled
    with pytest.raises(AemosError, match="target"):
        await notify.call("UpdateSubscription", id=made.id, target="b@example.org")


async def test_two_changes_at_once_both_stay(notify: NotifyWorker) -> None:
    """A change sets what it gives, and nothing else: not a secret that was made meanwhile."""
    made = await notify.subscribe(channel="webhook", target="https://example.org/hook")
    rotated = await notify.call("RotateSubscriptionSecret", id=made.id)
    changed = await notify.call("UpdateSubscription", id=made.id, name="t", filter=Filter(severities=("major",)))
    assert (changed.name, changed.filter.severities, changed.hourly_limit) == ("t", ["major"], 60)
    assert (await notify.secrets(made, now_ms()))[0] == rotated.secret
    with pytest.raises(AemosError):
        await notify.call("UpdateSubscription", id=made.id, hourly_limit=0)


async def test_two_new_secrets_at_once_both_sign(notify: NotifyWorker) -> None:
    """Each was shown to somebody."""
    made = await notify.subscribe(channel="webhook", target="https://example.org/hook")
    shown = await asyncio.gather(*(notify.call("RotateSubscriptionSecret", id=made.id) for _ in range(2)))
    assert set(await notify.secrets(made, now_ms())) == {one.secret for one in shown}


async def test_secrets(notify: NotifyWorker) -> None:
    """A webhook has one; a new one signs beside the old one, for a day."""
    made = await notify.subscribe(channel="webhook", target="https://example.org/hook")
    assert made.secret.startswith("whsec_")
    rotated = await notify.call("RotateSubscriptionSecret", id=made.id)
    assert await notify.secrets(made, now_ms()) == [rotated.secret, made.secret]
    assert await notify.secrets(made, now_ms() + 25 * 60 * MINUTE_MS) == [rotated.secret]


@pytest.mark.parametrize(
    ("changes", "loc"),
    [
        ({"name": ""}, "name"),
        ({"channel": "pigeon"}, "channel"),
        ({"target": ""}, "target"),
        ({"filter": Filter(device_uuids=("x" * 64,) * 1_000)}, "filter"),
        ({"body_template": "{{ type", "filter": Filter(event_types=("own",))}, "bodyTemplate"),
        ({"hourly_limit": 3_601}, "hourlyLimit"),
        ({"body_template": "{{ missing }}"}, "bodyTemplate"),
        ({"filter": Filter(device_label="site")}, "filter.deviceLabel"),
        ({"filter": Filter(device_label="=site")}, "filter.deviceLabel"),
    ],
)
async def test_mistakes_are_named(notify: NotifyWorker, changes: dict[str, Any], loc: str) -> None:
    """Nothing is saved that could not work."""
    with pytest.raises(AemosError) as refused:
        await notify.subscribe(**changes)
    assert [error.loc for error in refused.value.errors] == [loc]


async def test_another_organization_sees_nothing(notify: NotifyWorker) -> None:
    """Neither subscriptions nor deliveries."""
    made = await notify.subscribe()
    await notify.happens()
    set_caller(Caller(2, 8, "admin", "token"))
    with pytest.raises(AemosError):
        await notify.call("GetSubscription", id=made.id)
    assert await notify.statuses() == []


async def test_read_cursors_move_forward_only(notify: NotifyWorker) -> None:
    """Each user has an own one."""

    async def cursor(move_to: LogId | None = None) -> tuple[str, int]:
        if move_to is None:
            found = await notify.api.GetReadCursor(notification_pb2.GetReadCursorRequest(), None)  # type: ignore[arg-type]
        else:
            request = notification_pb2.MoveReadCursorRequest(id=str(move_to))
            found = await notify.api.MoveReadCursor(request, None)  # type: ignore[arg-type]
        return found.id, found.unread

    now = now_ms()
    for seq in range(3):
        await notify.happens(seq, now)
    assert await cursor() == ("", 3)
    assert await cursor(LogId(now, 1)) == (f"{now}-1", 1)
    assert await cursor(LogId(now, 0)) == (f"{now}-1", 1)
    with pytest.raises(AemosError, match="future"):
        await cursor(LogId(now + 60 * MINUTE_MS, 0))
    set_caller(Caller(1, 8, "viewer", "token"))
    assert await cursor() == ("", 3)


async def test_a_first_move_that_another_overtook_is_no_conflict(
    notify: NotifyWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found no cursor to move, and the other one made it."""
    move = store.move_read_cursor

    async def overtaken(*_: object) -> None:
        monkeypatch.setattr(store, "move_read_cursor", move)
        raise AemosError(Kind.EXISTS, "it exists already")

    monkeypatch.setattr(store, "move_read_cursor", overtaken)
    request = notification_pb2.MoveReadCursorRequest(id=f"{now_ms()}-0")
    assert (await notify.api.MoveReadCursor(request, None)).id == request.id  # type: ignore[arg-type]
