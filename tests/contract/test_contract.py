"""The contract is whole: access, routes, comments, golden bytes, errors."""

from __future__ import annotations

from importlib.resources import files

import grpc
import pytest
from aemos.v1 import job_pb2
from aemos_core.contract import Access, methods
from aemos_core.errors import AemosError, FieldError, Kind, from_grpc, to_grpc_trailers
from aemos_gateway import openapi
from google.protobuf import descriptor_pb2

BY_HAND = {"GetSigningKeys", "Watch"}
"""Keys are for services, and Socket.IO is what browsers watch with."""


def test_every_rpc_has_a_route_or_a_reason() -> None:
    """What users may call is offered as REST; what services call is not."""
    for method in methods().values():
        expected = method.access != Access.ACCESS_SERVICE and method.name not in BY_HAND
        assert bool(method.route) is expected, method.path


def test_every_rpc_and_message_has_a_comment() -> None:
    """Readers of the contract need no other page."""
    image = descriptor_pb2.FileDescriptorSet.FromString((files("aemos.v1") / "contract.binpb").read_bytes())
    for file in image.file:
        commented = {tuple(place.path) for place in file.source_code_info.location if place.leading_comments}
        for index, message in enumerate(file.message_type):
            assert (4, index) in commented, message.name
        for number, service in enumerate(file.service):
            for index, method in enumerate(service.method):
                assert (6, number, 2, index) in commented, method.name


def test_batches_join_byte_by_byte() -> None:
    """The relay makes one job of several rows without parsing them."""
    reading, source = job_pb2.CommittedReading, job_pb2.ReadingSource
    one, two = (job_pb2.ReadingBatch(readings=[reading(id=n)], sources=[source(telemetry_data_id=n)]) for n in (1, 2))
    joined = job_pb2.ReadingBatch.FromString(one.SerializeToString() + two.SerializeToString())
    assert [reading.id for reading in joined.readings] == [1, 2]
    assert [source.telemetry_data_id for source in joined.sources] == [1, 2]


def test_golden_bytes_of_a_reading() -> None:
    """Field numbers are for ever: the bytes of a field mean the same in every version that has it."""
    reading = job_pb2.CommittedReading(id=9876, telemetry_data_id=7, number=25.5, text="25.5")
    assert reading.SerializeToString().hex() == "08944d38074900000000008039405204" + b"25.5".hex()
    source = job_pb2.ReadingSource(telemetry_data_id=7, sensor_uuid="s", variable_name="t")
    assert source.SerializeToString().hex() == "08073201733a0174"


@pytest.mark.parametrize("kind", list(Kind))
def test_an_error_survives_grpc(kind: Kind) -> None:
    """Kind, reason, fields and Retry-After are the same on the other side."""
    error = AemosError(kind, "why", reason="because", errors=[FieldError("a.b", "wrong")], retry_after=7)
    trailers = grpc.aio.Metadata(*to_grpc_trailers(error))
    received = from_grpc(grpc.aio.AioRpcError(kind.answers.grpc, grpc.aio.Metadata(), trailers))
    assert (received.kind, received.reason, received.errors, received.retry_after) == (
        kind,
        "because",
        error.errors,
        7,
    )


def test_openapi_names_every_route() -> None:
    """The page is built from the same descriptors as the routes."""
    document = openapi.document()
    offered = {(route, verb) for route, item in document["paths"].items() for verb in item}
    declared = {(method.route.count("/"), method.verb.lower()) for method in methods().values() if method.route}
    assert declared <= {(route.count("/"), verb) for route, verb in offered}
    assert len(offered) == len(openapi._HAND_WRITTEN) + sum(bool(method.route) for method in methods().values())
