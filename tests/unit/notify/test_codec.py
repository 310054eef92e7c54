"""Notifications and readings in their forms."""

import json
import math

import pytest
from aemos.v1 import notification_pb2 as pb
from aemos.v1.job_pb2 import CommittedReading, ReadingSource
from aemos_core.errors import AemosError
from aemos_core.notification_log import Logged, LogId, parse_log_id
from aemos_notify import codec
from aemos_notify.publish import announcement_of
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(0, 10**15 - 1), st.integers(0, 10**18 - 1))
def test_log_ids_round_trip_and_order_as_numbers(ms: int, seq: int) -> None:
    """Text and back, and 9-1 comes before 10-0, unlike the texts."""
    assert parse_log_id(str(LogId(ms, seq)), "after") == LogId(ms, seq)
    assert LogId(9, 1) < LogId(10, 0) < LogId(10, 1)


@pytest.mark.parametrize("text", ["1", "-", "1-", "1-2-3", "1-2 ", "x-1", "\u0661-1", "1" * 16 + "-0", "1-0\n"])
def test_what_is_no_log_id_is_invalid(text: str) -> None:
    """INVALID names the field."""
    with pytest.raises(AemosError) as refused:
        parse_log_id(text, "after")
    assert refused.value.errors[0].loc == "after"


def test_page_token_goes_before_after() -> None:
    """A later page goes on where the one before it ended, whatever `after` says."""
    request = pb.ListNotificationsRequest(after="1-0", page_token="5-2")
    assert codec.after_from_pb(request) == LogId(5, 2)
    assert codec.after_from_pb(pb.ListNotificationsRequest()) == LogId()


def test_what_is_no_json_cannot_be_announced() -> None:
    """gRPC carries numbers that JSON has not; INVALID names the field."""
    for number in (math.nan, math.inf):
        request = pb.PublishNotificationRequest(type="maintenance", metadata={"a": number})
        with pytest.raises(AemosError) as refused:
            announcement_of(request, 1)
        assert refused.value.errors[0].loc == "metadata"


def test_incomplete_notifications_are_listed() -> None:
    """What a producer left out, or spelled wrongly, does not hide the rest."""
    bodies = ["{}", '{"metadata": 3, "timestamp": "yesterday"}', '{"metadata": {"a": [1, {"b": null}]}}']
    found = [codec.entry_to_pb(Logged(LogId(1_000, n), "t", (), body)) for n, body in enumerate(bodies)]
    assert [n.id for n in found] == ["1000-0", "1000-1", "1000-2"]
    assert {n.timestamp.ToMilliseconds() for n in found} == {1_000}
    assert json_format.MessageToDict(found[2].metadata) == {"a": [1, {"b": None}]}


@pytest.mark.parametrize(
    ("variable_type", "number", "text", "value"),
    [
        ("number", 25.5, "25.5", 25.5),
        ("number", 5.0, "5", 5),
        ("text", None, "25.5", "25.5"),
        ("boolean", None, "true", True),
        ("boolean", None, "false", False),
        ("json", None, '{"a":1}', '{"a":1}'),
    ],
)
def test_values_have_the_type_of_their_variable(
    variable_type: str, number: float | None, text: str, value: object
) -> None:
    """Numbers as numbers, booleans as booleans, everything else as the text that was sent."""
    of, reading = ReadingSource(variable_type=variable_type), CommittedReading(number=number, text=text)
    assert json.loads(codec.reading_to_json(of, reading, 0))["value"] == value
