"""Facts about gRPC between services: errors, and where it listens."""

from __future__ import annotations

import pytest
from aemos.v1 import schedule_pb2, schedule_pb2_grpc
from aemos_core.errors import AemosError, FieldError, Kind
from aemos_core.identity import TokenVerifier, Trust
from aemos_core.process import PortInUse, authority
from aemos_core.rpc import Context, grpc_server, open_channel
from aemos_scheduler.settings import SchedulerSettings

from tests.support.ports import free_port


class Refuses(schedule_pb2_grpc.SchedulerServiceServicer):
    """Refuses everything with this error."""

    def __init__(self, error: AemosError) -> None:
        self._error = error

    async def FinishFirings(
        self, request: schedule_pb2.FinishFiringsRequest, context: Context
    ) -> schedule_pb2.FinishFiringsResponse:
        raise self._error


async def _no_trust() -> Trust:
    return Trust({}, frozenset())


@pytest.mark.parametrize("text", ["must be 1 to 100", "muß: \U0001f600" * 400])
async def test_an_error_with_many_fields_stays_what_it_is(text: str) -> None:
    """A chain may have hundreds of mistakes, and a call's metadata 8 KiB: the first are named, the kind is the same."""
    errors = [FieldError(f"nodes.{index}.config.condition", text) for index in range(1_000)]
    error = AemosError(Kind.INVALID, "; ".join(e.message for e in errors), reason="invalid_chain", errors=errors)
    settings = SchedulerSettings(scheduler_grpc_port=free_port(), service_secret="s")
    async with (
        grpc_server(settings, "scheduler", TokenVerifier(_no_trust), [Refuses(error)]),
        open_channel(f"127.0.0.1:{settings.scheduler_grpc_port}", "s") as channel,
    ):
        with pytest.raises(AemosError) as refused:
            await schedule_pb2_grpc.SchedulerServiceStub(channel).FinishFirings(schedule_pb2.FinishFiringsRequest())
    assert (refused.value.kind, refused.value.reason) == (Kind.INVALID, "invalid_chain")
    assert len(refused.value.errors) > 2
    assert [e.loc for e in refused.value.errors] == [e.loc for e in errors[: len(refused.value.errors)]]


async def test_an_address_that_is_not_ours_is_named() -> None:
    """Nobody looks for who holds a port when it is the address that is wrong."""
    settings = SchedulerSettings(bind="192.0.2.1", service_secret="s")
    with pytest.raises(PortInUse, match="AEMOS_SCHEDULER_GRPC_PORT; or AEMOS_BIND is not an address"):
        async with grpc_server(settings, "scheduler", TokenVerifier(_no_trust), []):
            pass


@pytest.mark.parametrize(("host", "where"), [("::1", "[::1]:1"), ("::", "[::]:1"), ("0.0.0.0", "0.0.0.0:1")])
def test_an_ipv6_address_stands_in_brackets(host: str, where: str) -> None:
    """AEMOS_BIND is an address, not a part of a URL."""
    assert authority(host, 1) == where
