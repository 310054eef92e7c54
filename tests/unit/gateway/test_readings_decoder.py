"""One decoder for every shape of readings."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aemos_core.errors import AemosError, Kind
from aemos_core.times import parse_rfc3339
from aemos_gateway.quota import Quota
from aemos_gateway.readings import MAX_BATCH_BYTES, MOST_READINGS, decode
from hypothesis import given
from hypothesis import strategies as st

T = "2026-01-20T10:30:00Z"
AT = parse_rfc3339(T)


def shape(payload: Any) -> list[tuple[str, bytes, int, str]]:
    """Name, value, given time (0: none) and sensor of each reading."""
    sent = decode(json.dumps(payload, separators=(",", ":")).encode())
    return [(r.variable_name, r.value, 0 if r.at_arrival else r.received_at_ms, r.sensor_uuid) for r in sent.readings]


def test_shapes() -> None:
    """A single one, several variables in two spellings, and arrays of any of them."""
    single = {"value": "25.5", "variableName": "t", "recievedAt": T, "sensorUuid": "s"}
    assert shape(single) == [("t", b'"25.5"', AT, "s")]
    assert shape({"t": 21.5, "open": True}) == [("t", b"21.5", 0, ""), ("open", b"true", 0, "")]
    several = {"ts": AT, "values": {"t": 1, "x": {"a": 1}}, "sensorUuid": "s"}
    assert shape(several) == [("t", b"1", AT, "s"), ("x", b'{"a":1}', AT, "s")]
    assert shape([single, several, {"t": 2}]) == shape(single) + shape(several) + [("t", b"2", 0, "")]


def test_a_list_is_answered_as_a_list() -> None:
    """An object of one reading is not."""
    assert [decode(p).is_list for p in (b'{"value":1,"variableName":"t"}', b'{"t":1}', b'[{"t":1}]')] == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("payload", "kind", "locs"),
    [
        ([], Kind.INVALID, []),
        ([{"t": 1}] * (MOST_READINGS + 1), Kind.TOO_LARGE, []),
        (
            [{"value": 1}, {"t": 2}, {"value": 1, "variableName": ""}],
            Kind.INVALID,
            ["0.variableName", "2.variableName"],
        ),
        ([{"t": 1}, 7], Kind.INVALID, ["1.body"]),
        ({"ts": 1768905000, "values": {"t": 1}}, Kind.INVALID, ["ts"]),
        ({"ts": "now", "values": {"t": 1}}, Kind.INVALID, ["ts"]),
        ({"values": {}}, Kind.INVALID, ["values"]),
        ({"value": 1, "variableName": "t", "messageId": "m" * 129}, Kind.INVALID, ["messageId"]),
        ({"value": 1, "variableName": "t", "more": 1}, Kind.INVALID, ["more"]),
    ],
)
def test_mistakes_are_located(payload: Any, kind: Kind, locs: list[str]) -> None:
    """Each by its index and field."""
    with pytest.raises(AemosError) as refused:
        decode(json.dumps(payload).encode())
    assert (refused.value.kind, [e.loc for e in refused.value.errors]) == (kind, locs)


@pytest.mark.parametrize(
    ("payload", "locs"),
    [
        (b'{"variableName": "t", "value": {"x": 1e400}}', ["value"]),
        (b'{"a": 1, "t": {"x": 1e400}}', ["t"]),
        (b'{"ts": 1768905000000, "values": {"t": [1e400]}}', ["t"]),
        (b'[{"a": 1}, {"variableName": "t", "value": [1e400]}, {"t": [1e400]}]', ["1.value", "2.t"]),
    ],
)
def test_numbers_out_of_range_within_json(payload: bytes, locs: list[str]) -> None:
    """Are mistakes of their variable, not bytes that are no JSON (row 10)."""
    with pytest.raises(AemosError) as refused:
        decode(payload)
    assert (refused.value.kind, [e.loc for e in refused.value.errors]) == (Kind.INVALID, locs)


def test_the_letters_of_a_time_may_be_small() -> None:
    """RFC 3339 says so."""
    payload = b'{"value": 1, "variableName": "t", "receivedAt": "2026-01-20t10:30:00.5z"}'
    assert decode(payload).readings[0].received_at_ms == parse_rfc3339("2026-01-20T10:30:00.500Z")


def test_a_partial_batch_keeps_what_is_right() -> None:
    """And says where the mistakes are; when nothing is right it is refused."""
    payload = json.dumps([{"value": 1}, {"t": 2}]).encode()
    sent = decode(payload, partial=True)
    assert ([r.variable_name for r in sent.readings], [e.loc for e in sent.refused]) == (["t"], ["0.variableName"])
    assert sent.places == ["1.t"]
    with pytest.raises(AemosError):
        decode(b'[{"value": 1}]', partial=True)


def test_sizes() -> None:
    """64 KiB for an object, 1 MiB for an array."""
    large = {"value": "x" * 66_000, "variableName": "t"}
    for payload in (json.dumps(large).encode(), json.dumps([{"t": "x" * 60_000}] * 20).encode()):
        assert len(payload) < MAX_BATCH_BYTES * 2
        with pytest.raises(AemosError) as refused:
            decode(payload)
        assert refused.value.kind is Kind.TOO_LARGE
    assert len(decode(json.dumps([{"t": "x" * 60_000}] * 10).encode()).readings) == 10


REFUSED_OR_TAKEN = {Kind.MALFORMED, Kind.INVALID, True}


def outcome(payload: bytes) -> Kind | bool:
    """Whether there are readings in it, or of which kind its refusal is."""
    try:
        return bool(decode(payload).readings)
    except AemosError as error:
        return error.kind


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_whatever_comes_is_readings_or_a_refusal(payload: bytes) -> None:
    """Nothing else is ever raised."""
    assert outcome(payload) in REFUSED_OR_TAKEN


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["value", "variableName", "recievedAt", "ts", "values", "x"]), json_values))
def test_whatever_json_comes_is_readings_or_a_refusal(payload: dict[str, Any]) -> None:
    """Nothing else is ever raised."""
    assert outcome(json.dumps(payload).encode()) in REFUSED_OR_TAKEN


def refused(quota: Quota, device: int, now: float) -> tuple[str, int | None]:
    """Which limit says no, and the seconds to wait; empty when none does."""
    try:
        quota.check(device, 1, now)
    except AemosError as error:
        return error.reason, error.retry_after
    return "", None


def test_what_belongs_to_another_shape_makes_no_variable() -> None:
    """A field that is at the wrong place would be a variable of that name for ever."""
    for misplaced in ("ts", "sensorUuid", "messageId", "recievedAt", "receivedAt"):
        with pytest.raises(AemosError) as error:
            decode(json.dumps({"temperature": 1, misplaced: "x"}).encode())
        assert [field.loc for field in error.value.errors] == [misplaced]


@pytest.mark.parametrize("name", ["m ", " m", "m\n", "x" * 129])
def test_names_of_messages_that_a_database_would_take_for_others(name: str) -> None:
    """MariaDB compares text without the spaces at its end."""
    with pytest.raises(AemosError) as error:
        decode(json.dumps({"value": 1, "variableName": "t", "messageId": name}).encode())
    assert [field.loc for field in error.value.errors] == ["messageId"]


def test_a_bucket_holds_a_second() -> None:
    """It fills as time passes; whose it is stands in the reason; a batch larger than it is let in, and owed."""
    quota = Quota(per_device=4, per_organization=8)
    quota.spend(1, 1, 4, now=10.0)
    assert refused(quota, 1, 10.0) == ("device_rate_limit", 1)
    assert refused(quota, 1, 10.25) == ("", None)
    assert refused(quota, 2, 10.0) == ("", None)
    quota.spend(2, 1, 4, now=10.0)
    assert refused(quota, 3, 10.0) == ("organization_rate_limit", 1)
    assert refused(quota, 3, 10.5) == ("", None)
    quota.spend(3, 1, 20, now=12.0)
    assert refused(quota, 3, 12.0) == ("device_rate_limit", 4)
    assert refused(quota, 3, 16.5) == ("", None)


def test_over_time_a_device_gets_its_rate_and_one_bucket() -> None:
    """However it asks."""
    quota = Quota(per_device=100, per_organization=1_000)
    taken = 0
    for millisecond in range(10_000):
        if not refused(quota, 1, millisecond / 1000)[0]:
            quota.spend(1, 1, 3, millisecond / 1000)
            taken += 3
    assert 100 * 10 <= taken <= 100 * 11 + 3


def test_full_buckets_are_forgotten() -> None:
    """Memory follows who sends now, not who ever sent."""
    quota = Quota(per_device=1_000, per_organization=1_000_000)
    for device in range(300_000):
        quota.spend(device, 1, 1, now=device / 1000)
    assert len(quota._devices._full_at) <= 100_001
