"""Answers over CoAP: the error table, the body of RFC 9457, and nothing over one datagram."""

import msgspec
import pytest
from aemos_core.errors import AemosError, Kind, invalid
from aemos_gateway.coap_answers import MAX_AGE, MOST_PAYLOAD, SIZE1, CoapError, refused, stored
from aemos_gateway.readings import MAX_READING_BYTES, Reading

from tests.support.fake_coap import receipt


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_its_code_and_body(kind: Kind) -> None:
    """The code is the table's, the body's status the same code as a number."""
    answer = refused(AemosError(kind, "detail"))
    body = msgspec.json.decode(answer.payload)
    assert answer.code == kind.answers.coap
    assert body["status"] == answer.code // 32 * 100 + answer.code % 32
    assert body.keys() == {"type", "title", "status", "detail", "reason", "errors"}
    assert answer.options.get(SIZE1) == (MAX_READING_BYTES if kind is Kind.TOO_LARGE else None)
    assert answer.options.get(MAX_AGE) == (1 if kind in (Kind.BUSY, Kind.UNAVAILABLE) else None)


def test_fields_at_fault_are_named() -> None:
    """Each has its location."""
    body = msgspec.json.decode(refused(invalid("value", "is too small")).payload)
    assert body["errors"] == [{"loc": "value", "message": "is too small"}]


def test_codes_of_coap_itself() -> None:
    """What the table does not know keeps its own code and reason."""
    body = msgspec.json.decode(refused(CoapError("4.15", "unsupported_content_format", "no")).payload)
    assert (body["status"], body["reason"]) == (415, "unsupported_content_format")


def test_large_values_are_not_echoed() -> None:
    """An answer fits one datagram: a value that would not let it is left out."""
    small, large = (receipt(9, "s", Reading(variable_name="v", value=b'"%b"' % (b"x" * n))) for n in (10, 60_000))
    assert msgspec.json.decode(stored(small).payload)["data"]["value"] == "x" * 10
    data = msgspec.json.decode(stored(large).payload)["data"]
    assert data.keys() == {"id", "variableName", "telemetryDataId", "sensorUuid", "recievedAt"}
    assert len(stored(large).payload) < MOST_PAYLOAD
