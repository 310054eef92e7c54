"""What devices may send and what becomes of it, the same over HTTP, MQTT and CoAP. Numbers are rows of the design's
table of hard cases; a variable has the name of its case, so that each case counts what it stored."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Protocol

import httpx
import pytest

from tests.support import coap_client
from tests.support.coap_client import RawClient, raw_client
from tests.support.fake_mqtt_ports import PINGREQ, PINGRESP, Door, Raw, connect, publish, string, subscribe
from tests.support.stack import Stack, running

BATCH = "/api/v1/datastreams/batch"
LIMIT = 1_000
"""Readings a second from a device of this installation."""
DEADLINE_S = 20.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = {"AEMOS_DEMO_DEVICES": "4", "AEMOS_DEVICE_READINGS_PER_SECOND": str(LIMIT)}
    with running(tmp_path_factory.mktemp("var"), **settings) as stack:
        yield stack


class Answer(NamedTuple):
    """`status` in HTTP's numbers: 201 for what was acknowledged without an explanation over MQTT, then 0 if there is
    one. `data` is what is stored, `locs` where mistakes are."""

    status: int
    data: list[dict[str, Any]]
    locs: list[str]


def answer(status: int, body: Any) -> Answer:
    data = body.get("data", [])
    return Answer(
        status, data if isinstance(data, list) else [data], [error["loc"] for error in body.get("errors", [])]
    )


class Way(Protocol):
    """One protocol, as one device."""

    name: str

    async def send(self, body: bytes, *, again: bool = False) -> Answer:
        """Sends; `again` as the protocol repeats what was sent last."""


class Http:
    """An array goes to its own route."""

    name = "http"

    def __init__(self, stack: Stack, client: httpx.AsyncClient, device: int = 0) -> None:
        self._headers = {"Authorization": f"Bearer {stack.demo['devices'][device]['token']}"}
        self._client = client

    async def post(self, path: str, body: bytes, **headers: str) -> httpx.Response:
        return await self._client.post(path, content=body, headers={**self._headers, **headers})

    async def send(self, body: bytes, *, again: bool = False) -> Answer:
        path = BATCH if body.startswith(b"[") else "/api/v1/datastreams/token"
        response = await self.post(path, body)
        return answer(response.status_code, response.json())


class Mqtt:
    """QoS 1, and an ear on the errors topic."""

    name = "mqtt"

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uuid: str) -> None:
        self._reader, self._writer = reader, writer
        self._topic, self._errors = (f"aemos/devices/{uuid}/{kind}" for kind in ("telemetry", "errors"))
        self._number = 0

    @classmethod
    async def open(cls, stack: Stack, device: int = 1) -> Mqtt:
        found, address = stack.demo["devices"][device], stack.demo["mqtt"]
        client = cls(*await asyncio.open_connection(address["host"], address["port"]), found["uuid"])
        client._writer.write(connect(found["token"], uuid=found["uuid"], client="e2e"))
        client._writer.write(subscribe((client._errors, 0)))
        assert [(await client._packet())[0] for _ in range(2)] == [0x20, 0x90]
        return client

    async def send(self, body: bytes, *, again: bool = False) -> Answer:
        self._number += not again
        flags = 8 if again else 0
        self._writer.write(publish(body, topic=self._topic, number=self._number, flags=flags))
        assert await self._packet() == (0x40, self._number.to_bytes(2))
        self._writer.write(PINGREQ)
        explained = Answer(201, [], [])
        while (packet := await self._packet()) != PINGRESP:
            explained = answer(0, json.loads(packet[1].removeprefix(string(self._errors))))
        return explained

    async def _packet(self) -> tuple[int, bytes]:
        async with asyncio.timeout(DEADLINE_S):
            header, length, shift = (await self._reader.readexactly(1))[0], 0, 0
            while True:
                byte = (await self._reader.readexactly(1))[0]
                length |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    return header, await self._reader.readexactly(length)

    def close(self) -> None:
        self._writer.close()


class Coap:
    """Confirmable, one datagram."""

    name = "coap"

    def __init__(self, stack: Stack, client: RawClient, device: int = 2) -> None:
        self._client, self._token = client, stack.demo["devices"][device]["token"].encode()
        self._number = 100

    async def ask(self, body: bytes, *, again: bool = False) -> Any:
        self._number += not again
        return await self._client.ask(coap_client.reading(body, device=self._token, mid=self._number))

    async def send(self, body: bytes, *, again: bool = False) -> Answer:
        message = await self.ask(body, again=again)
        major, minor = message.code.dotted.split(".")
        return answer(int(major) * 100 + int(minor), json.loads(message.payload))


@asynccontextmanager
async def ways(stack: Stack) -> AsyncIterator[Sequence[Way]]:
    """One of each."""
    host, port = stack.demo["coapUrl"].removeprefix("coap://").split(":")
    mqtt = await Mqtt.open(stack)
    async with (
        httpx.AsyncClient(base_url=stack.demo["httpUrl"], timeout=20) as client,
        raw_client(int(port), host) as raw,
    ):
        yield Http(stack, client), mqtt, Coap(stack, raw)
        mqtt.close()


def stored(stack: Stack, device: int, variable: str) -> list[str]:
    """The values of a variable, oldest first."""
    sensor = stack.demo["devices"][device]["sensorUuid"]
    path = f"/api/v1/datastreams?sensorUuid={sensor}&variableName={variable}&pageSize=1000"
    status, body = stack.call("GET", path)
    return [reading["value"] for reading in body["readings"]] if status == 200 else []


class Case(NamedTuple):
    """A body, its HTTP and CoAP status, where mistakes are, and what is stored."""

    sent: Any
    status: int = 201
    coap: int = 201
    locs: Sequence[str] = ()
    stored: Sequence[str] = ()


def one(value: Any, **more: Any) -> dict[str, Any]:
    """A reading of the variable of its case."""
    return {"variableName": "CASE", "value": value, **more}


YESTERDAY = "2026-01-01T00:00:00Z"
CASES = {
    "one": Case(one("25.5"), stored=["25.5"]),
    "array": Case([one(1), one(2), one(3)], stored=["1", "2", "3"]),
    "several": Case({"CASE": 21.5, "other": True}, stored=["21.5"]),
    "timed": Case({"ts": 1769000000000, "values": {"CASE": 21.5}}, stored=["21.5"]),
    "mixed": Case([one(1), {"CASE": 2, "other": False}, {"values": {"CASE": 3}}], stored=["1", "2", "3"]),
    "text": Case([one("warm"), one("25.5")], stored=["warm", "25.5"]),
    "twice": Case(b'{"value": 1, "value": 2, "variableName": "CASE"}', stored=["2"]),
    "late": Case(one(1, recievedAt=YESTERDAY), stored=["1"]),
    "type": Case([one(1), one(True)], 422, 400, ["1.value"]),
    "types": Case([one(1), one("x"), one(2), one({})], 422, 400, ["1.value", "3.value"]),
    "null": Case(one(None), 422, 400, ["value"]),
    "bad": Case([*[one(n) for n in range(9)], {"variableName": "CASE"}], 422, 400, ["9.value"]),
    "part": Case({"values": {"CASE": 1, "temperature": "warm"}}, 422, 400, ["temperature.value"]),
    "empty": Case([], 422, 400),
    "nothing": Case({}, 422, 400),
    "field": Case({"CASE": 1, "ts": 1769000000000}, 422, 400, ["ts"]),
    "sensor": Case(one(1, sensorUuid="another"), 422, 400, ["sensorUuid"]),
    "seconds": Case({"ts": 1769000000, "values": {"CASE": 1}}, 422, 400, ["ts"]),
    "negative": Case({"ts": -1, "values": {"CASE": 1}}, 422, 400, ["ts"]),
}


def body_of(name: str, sent: Any) -> bytes:
    """The JSON of a case, whose variable has its name."""
    text = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    return text.replace(b"CASE", name.encode())


async def test_what_is_sent_is_stored_or_refused_the_same_on_every_protocol(stack: Stack) -> None:
    """Rows 11, 13, 14, 15 and 16: the shapes; unknown variables are made; of what has one mistake nothing is stored."""
    async with ways(stack) as all_ways:
        for device, way in enumerate(all_ways):
            for name, case in CASES.items():
                got = await way.send(body_of(name, case.sent))
                statuses = {"http": case.status, "coap": case.coap, "mqtt": 201 if case.status == 201 else 0}
                assert (got.status, stored(stack, device, name)) == (statuses[way.name], list(case.stored)), (way, name)
                assert got.locs == list(case.locs) or not case.locs, (way, name)


async def test_the_same_again_is_stored_once(stack: Stack) -> None:
    """Row 17: by its messageId, or as the protocol repeats; another message with that messageId is refused."""
    async with ways(stack) as all_ways:
        for device, way in enumerate(all_ways):
            first, again = [await way.send(body_of("named", one(1, messageId="m1"))) for _ in range(2)]
            other = await way.send(body_of("named", one(2, messageId="m1")))
            assert first == again, way
            assert other.status == {"http": 409, "mqtt": 0, "coap": 409}[way.name]
            assert stored(stack, device, "named") == ["1"], way
            if way.name != "http":
                assert await way.send(body_of("repeated", one(7))) == await way.send(
                    body_of("repeated", one(7)), again=True
                )
                assert stored(stack, device, "repeated") == ["7"], way


async def test_qos_2_over_lost_connections_is_stored_once(stack: Stack) -> None:
    """Row 17: sent again at once, and on a new connection; another reading under an id that was not released is one."""
    device = stack.demo["devices"][1]
    entrance = connect(device["token"], uuid=device["uuid"], client="exactly", clean=False)
    topic, pubrec = f"aemos/devices/{device['uuid']}/telemetry", (0x50, b"\0\1")
    first, other = (body_of("exactly", one(value)) for value in (1, 2))
    client = await Raw.open(Door(stack.demo), entrance, *[publish(first, topic=topic, qos=2, flags=f) for f in (0, 8)])
    assert [await client.receive() for _ in range(3)] == [(0x20, b"\0\0"), pubrec, pubrec]
    for body, flags, values in ((first, 8, ["1"]), (other, 0, ["1", "2"]), (other, 8, ["1", "2"])):
        client.close()
        client = await Raw.open(Door(stack.demo), entrance, publish(body, topic=topic, qos=2, flags=flags))
        assert [await client.receive() for _ in range(2)] == [(0x20, b"\1\0"), pubrec]
        assert stored(stack, 1, "exactly") == values
    client.send(b"\x62\2\0\1")
    assert await client.receive() == (0x70, b"\0\1")
    client.close()


async def test_the_good_ones_of_a_batch(stack: Stack) -> None:
    """Row 14: with ?partial=true they are stored, and the bad ones are listed by index."""
    async with httpx.AsyncClient(base_url=stack.demo["httpUrl"], timeout=20) as client:
        way = Http(stack, client)
        sent = [one(1), {"variableName": "CASE"}, one(3), one("x")]
        response = await way.post(BATCH + "?partial=true", body_of("partial", sent))
        got = answer(response.status_code, response.json())
        assert (got.status, [data["value"] for data in got.data], got.locs) == (201, [1, 3], ["1.value", "3.value"])
        assert stored(stack, 0, "partial") == ["1", "3"]


async def test_sizes_and_encodings(stack: Stack) -> None:
    """Rows 6 and 15: more readings or bytes than a batch has, a gzip bomb, what is no gzip, what is not understood."""
    large, filler = body_of("size", [one(n) for n in range(1_001)]), b" " * 2**20
    async with httpx.AsyncClient(base_url=stack.demo["httpUrl"], timeout=20) as client:
        way = Http(stack, client)
        for status, body, headers in (
            (413, large, {}),
            (413, b"[" + filler + b"]", {}),
            (413, gzip.compress(b"[" + filler * 200 + b"]"), {"Content-Encoding": "gzip"}),
            (400, gzip.compress(large)[:-9], {"Content-Encoding": "gzip"}),
            (400, b"[1]", {"Content-Encoding": "gzip"}),
            (415, b"[1]", {"Content-Encoding": "br"}),
            (201, gzip.compress(body_of("size", [one(1)])), {"Content-Encoding": "gzip"}),
        ):
            assert (await way.post(BATCH, body, **headers)).status_code == status
    assert stored(stack, 0, "size") == ["1"]


async def test_who_is_over_the_limit_waits(stack: Stack) -> None:
    """Row 23: 429 with the limit and the time to wait, 4.29 with Max-Age; MQTT reads on later, and loses nothing."""
    host, port = stack.demo["coapUrl"].removeprefix("coap://").split(":")
    batch = body_of("flood", [one(n) for n in range(LIMIT)])
    async with (
        httpx.AsyncClient(base_url=stack.demo["httpUrl"], timeout=20) as client,
        raw_client(int(port), host) as raw,
    ):
        http, coap, mqtt = Http(stack, client, 3), Coap(stack, raw, 3), await Mqtt.open(stack, 3)
        answers = [await http.post(BATCH, batch) for _ in range(8)]
        refused = [response for response in answers if response.status_code == 429]
        assert refused
        assert {(r.json()["reason"], int(r.headers["Retry-After"]) > 0) for r in refused} == {
            ("device_rate_limit", True)
        }
        while (message := await coap.ask(body_of("flood", one(1)))).code.dotted == "2.01":
            await http.post(BATCH, batch)
        assert (message.code.dotted, json.loads(message.payload)["reason"]) == ("4.29", "device_rate_limit")
        assert message.opt.max_age > 0
        sent = [await mqtt.send(body_of("slowly", one(number))) for number in range(3)]
        assert {got.status for got in sent} == {201}
        assert stored(stack, 3, "slowly") == ["0", "1", "2"]
        mqtt.close()
