"""Observers are capped, told in order, and never held up by a slow one."""

import pytest
from aemos_core.errors import AemosError, Kind, unavailable
from aemos_gateway import coap_observers
from aemos_gateway.coap_observers import MOST_PER_DEVICE, MOST_WAITING, Inbox, Observers, fitting
from aemos_gateway.downlink import Downlink


def test_long_notifications_are_told_by_id() -> None:
    """Over 1,024 bytes only the id goes out, as the number or text that it is."""
    for shown in (b"17", b'"17-0"'):
        short = fitting(b'{"id":' + shown + b',"x":"' + b"y" * 1024 + b'"}')
        assert short.startswith(b'{"id":' + shown + b",")
        assert len(short) < 100
    assert fitting(b"y" * 1024) == b"y" * 1024
    for unnamed in (b"y" * 1025, b'["' + b"y" * 1024 + b'"]', b'{"x":"' + b"y" * 1024 + b'"}'):
        assert fitting(unnamed).startswith(b'{"id":null,')


async def test_slow_observer_loses_the_oldest() -> None:
    """What waits is bounded; the newest is always told."""
    inbox = Inbox()
    for number in range(MOST_WAITING + 3):
        inbox.put(b"%d" % number)
    assert [await inbox.next() for _ in range(MOST_WAITING)] == [b"%d" % n for n in range(3, MOST_WAITING + 3)]


async def test_nothing_new_and_the_end() -> None:
    """None after a while without a notification; and what ended the observation."""
    inbox = Inbox()
    assert await inbox.next(seconds=0) is None
    inbox.put(unavailable("over"))
    with pytest.raises(AemosError) as caught:
        await inbox.next()
    assert caught.value.kind is Kind.UNAVAILABLE


def test_capped_per_device_and_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is refused with a time to come back, and let in when another left."""
    observers = Observers(Downlink())
    open_ones = [observers.registered("abc-123", "peer") for _ in range(MOST_PER_DEVICE)]
    for one in open_ones:
        one.__enter__()
    with pytest.raises(AemosError) as caught, observers.registered("abc-123", "peer"):
        pass
    assert (caught.value.reason, caught.value.retry_after) == ("too_many_observers", 60)
    with observers.registered("def-456", "peer"):
        assert len(observers) == MOST_PER_DEVICE + 1
    monkeypatch.setattr(coap_observers, "MOST_OBSERVERS", MOST_PER_DEVICE)
    with pytest.raises(AemosError), observers.registered("def-456", "peer"):
        pass
    for one in open_ones:
        one.__exit__(None, None, None)
    assert len(observers) == 0


def test_newest_is_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest notification outlives its observer; the device that was quiet for longest is forgotten."""
    monkeypatch.setattr(coap_observers, "MOST_REMEMBERED", 2)
    downlink = Downlink()
    observers = Observers(downlink)
    for device in ("a", "b", "c"):
        with observers.registered(device, "peer"):
            downlink.send(device, device.encode())
    assert [observers.newest(device) for device in ("a", "b", "c")] == [b"{}", b"b", b"c"]
    assert downlink.all() == []


def test_numbers_only_grow() -> None:
    """The Observe option grows from one notification to the next."""
    observers = Observers(Downlink())
    first = observers.next_number()
    assert observers.next_number() == (first + 1) % (1 << 24)
