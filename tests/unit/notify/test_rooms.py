"""Rooms, and events as they are written."""

from aemos_notify.rooms import Event, Rooms


class FakeMember:
    organization_id = 1

    def __init__(self) -> None:
        self.heard: list[Event] = []

    def send(self, event: Event) -> None:
        self.heard.append(event)

    notify = send


def test_members_of_several_rooms_are_there_once() -> None:
    """Who is in two of the rooms is one member."""
    rooms, one, two = Rooms(), FakeMember(), FakeMember()
    for room in ("a", "b"):
        rooms.join(room, one)
    rooms.join("b", two)
    assert rooms.members("a", "b", "c") == {one, two}
    assert rooms.members("a") == {one}
    assert rooms.members() == set()
    assert rooms.of(one) == {"a", "b"}


def test_leaving_leaves_nothing_behind() -> None:
    """After the last member left there are no rooms and no members, however often somebody joins or leaves."""
    rooms, member = Rooms(), FakeMember()
    for _ in range(2):
        assert rooms.empty
        rooms.join("a", member)
        rooms.join("a", member)
        rooms.join("b", member)
        rooms.leave("a", member)
        rooms.leave("a", member)
        rooms.leave("never", member)
        assert not rooms.empty
        rooms.leave_all(member)
        rooms.leave_all(member)
    assert rooms.members("a", "b") == set()
    assert vars(rooms)["_members"] == vars(rooms)["_rooms"] == {}


def test_event_is_a_frame_and_a_packet_with_the_same_text() -> None:
    """Both forms carry the payload's own bytes; several events are several frames in one piece."""
    payload = '{"a":  1.10, "b": "\u00e9\\u00e9"}'
    event = Event([('e"x', payload), ("f", "1")])
    text = '2["e\\"x",' + payload + "]"
    assert [packet.encode() for packet in event.packets] == ["4" + text, '42["f",1]']
    first, second = ("4" + text).encode(), b'42["f",1]'
    assert event.frames == bytes([0x81, len(first)]) + first + bytes([0x81, len(second)]) + second
