"""A CoAP edge on a real socket under uvloop, as in production, and a client that sends it bytes."""

from collections.abc import AsyncIterator

import pytest
import uvloop

from tests.support.coap_client import RawClient, raw_client
from tests.support.fake_coap import Edge, running_edge


@pytest.fixture(scope="module")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    return uvloop.EventLoopPolicy()


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    edge = Edge()
    async with running_edge(edge):
        yield edge


@pytest.fixture
async def client(edge: Edge) -> AsyncIterator[RawClient]:
    async with raw_client(edge.port) as client:
        yield client
