"""The REST JSON: maps and free objects, in bodies and in the OpenAPI page."""

from __future__ import annotations

from typing import Any

import pytest
from aemos.v1 import alarm_pb2, chain_run_pb2, data_stream_pb2, device_pb2, rule_chain_pb2
from aemos_core.errors import AemosError, FieldError, Kind
from aemos_gateway.json_codec import from_json, from_parameters, to_json
from aemos_gateway.openapi import document


def test_a_map_and_an_object_come_back_as_they_went_in() -> None:
    """Labels and attributes of a device."""
    body = {"name": "n", "labels": {"site": "north"}, "attributes": {"limits": [1, 2.5], "on": True, "x": None}}
    message = device_pb2.CreateDeviceRequest()
    assert from_json(message, body) == []
    assert {name: to_json(message)[name] for name in body} == body


@pytest.mark.parametrize(
    ("body", "mistake"),
    [
        ({"labels": ["a"]}, FieldError("labels", "must be an object")),
        ({"labels": {"a": 1}}, FieldError("labels.a", "must be text")),
        ({"labels": {"a": None}}, FieldError("labels.a", "must be text")),
        ({"attributes": "x"}, FieldError("attributes", "must be an object")),
        ({"attributes": {"x": 10**400}}, FieldError("attributes", "a number in it is too large")),
    ],
)
def test_a_mistake_in_a_map_has_its_place(body: dict[str, Any], mistake: FieldError) -> None:
    """As in every other field."""
    assert from_json(device_pb2.CreateDeviceRequest(), body) == [mistake]


@pytest.mark.parametrize(
    ("message", "body", "mistake"),
    [
        (data_stream_pb2.QueryReadingsRequest(), {"pageSize": 2**31}, FieldError("pageSize", "must be an integer")),
        (chain_run_pb2.MadeUpReading(), {"value": 10**400}, FieldError("value", "a number in it is too large")),
        (rule_chain_pb2.Node(), {"config": {"x": [10**400]}}, FieldError("config", "a number in it is too large")),
    ],
)
def test_a_number_that_its_field_cannot_hold_is_a_mistake(
    message: Any, body: dict[str, Any], mistake: FieldError
) -> None:
    """And no failure of ours."""
    assert from_json(message, body) == [mistake]


def _nested(levels: int) -> Any:
    value: Any = 1.0
    for level in range(levels):
        value = [value] if level % 2 else {"x": value}
    return value


def test_an_object_is_nested_as_deep_as_the_wire_takes() -> None:
    """And comes back as it was."""
    message = device_pb2.CreateDeviceRequest()
    assert from_json(message, {"attributes": {"x": _nested(30)}}) == []
    assert to_json(message)["attributes"] == {"x": _nested(30)}


def test_deeper_than_the_wire_takes_cannot_be_parsed() -> None:
    """64 levels are JSON, and too many for the message that carries them (hard case 12)."""
    with pytest.raises(AemosError) as refused:
        from_json(device_pb2.CreateDeviceRequest(), {"attributes": {"x": _nested(64)}})
    assert refused.value.kind is Kind.MALFORMED


def test_the_openapi_page_says_what_a_map_holds() -> None:
    """An object with values of one type."""
    device = document()["components"]["schemas"]["Device"]["properties"]
    assert device["labels"] == {"type": "object", "additionalProperties": {"type": "string"}}


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False)])
def test_a_parameter_is_true_or_false(text: str, value: bool) -> None:
    """As Python's clients spell it too."""
    asked = alarm_pb2.ListAlarmsRequest()
    values, errors = from_parameters(asked.DESCRIPTOR, {"active": [text]})
    assert errors + from_json(asked, values) == []
    assert (asked.HasField("active"), asked.active) == (True, value)


@pytest.mark.parametrize(("name", "mistake"), [("active", "must be true or false"), ("pageSize", "must be an integer")])
@pytest.mark.parametrize("text", ["", "yes", "1.5", "-1", "\uff11", "9" * 30])
def test_a_parameter_of_another_type_is_a_mistake(name: str, mistake: str, text: str) -> None:
    """Which says what it must be."""
    asked = alarm_pb2.ListAlarmsRequest()
    values, errors = from_parameters(asked.DESCRIPTOR, {name: [text]})
    assert errors + from_json(asked, values) == [FieldError(name, mistake)]


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
def test_a_time_that_its_offset_moves_out_of_all_years_is_a_mistake(time: str) -> None:
    """No other service could read it."""
    mistake = FieldError("from", "must be an RFC 3339 time with its offset")
    assert from_json(data_stream_pb2.QueryReadingsRequest(), {"from": time}) == [mistake]


@pytest.mark.parametrize("time", [1, 1.5, True, [], {}, "", "2026-01-20", "soon"])
def test_what_is_no_time_is_a_mistake(time: object) -> None:
    """Of whatever type."""
    mistake = FieldError("from", "must be an RFC 3339 time with its offset")
    assert from_json(data_stream_pb2.QueryReadingsRequest(), {"from": time}) == [mistake]
