"""Hard cases over the whole of AEMOS: the number is the row of the design's table. Nothing of them is ever stored.

What only a socket can get wrong (frames, options, blocks) is tested at the edges, in tests/integration.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import httpx
import jwt
import paho.mqtt.client as paho
import psutil
import pytest
from aemos.v1 import data_stream_pb2, data_stream_pb2_grpc, device_pb2, device_pb2_grpc, identity_pb2, identity_pb2_grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from paho.mqtt.enums import CallbackAPIVersion

from tests.support import coap_client
from tests.support.coap_client import block1, datagram, raw_client
from tests.support.fake_mqtt_ports import Door, Raw, connect, publish, string, suback, subscribe
from tests.support.stack import Stack, eventually, running

PATH = "/api/v1/datastreams/token"
DEEP_SECONDS = 0.5


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    var = tmp_path_factory.mktemp("var")
    with running(var, AEMOS_DEMO_DEVICES="3") as stack:
        processes = psutil.Process(stack.process.pid).children(recursive=True)
        yield stack
        assert all(process.is_running() for process in processes)
        log = (var / "log").read_text(encoding="utf-8", errors="replace")
        assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]


def reading(value: str, name: str = '"temperature"', more: str = "") -> bytes:
    """The bytes of a reading whose value is this JSON."""
    return f'{{"value": {value}, "variableName": {name}{more}}}'.encode()


class Body(NamedTuple):
    """A body that is refused: its HTTP and CoAP status, where the mistake is, and whether MQTT explains it."""

    sent: bytes
    http: int
    coap: str = "4.00"
    loc: str = ""


BODIES = {
    "6 a reading over 64 KiB": Body(reading(f'"{"x" * 65536}"'), 413, "4.13"),
    "8 not UTF-8": Body(b'{"value": 1, "variableName": "\xff\xfe"}', 400),
    "9 NUL": Body(reading('"a\\u0000b"'), 400),
    "9 a lone surrogate": Body(reading('"\\ud800"'), 400),
    "10 NaN": Body(reading("NaN"), 400),
    "10 -Infinity": Body(reading("-Infinity"), 400),
    "10 1e400": Body(reading("1e400"), 422, loc="value"),
    "10 30 digits": Body(reading("9" * 30), 422, loc="value"),
    "10 the text NaN": Body(reading('"NaN"'), 422, loc="value"),
    "12 nested 1,000 deep": Body(reading("[" * 1000 + "]" * 1000), 400),
    "12 nested 30,000 deep": Body(reading("[" * 30_000 + "]" * 30_000), 400),
    "13 text": Body(reading('"warm"'), 422, loc="value"),
    "13 boolean": Body(reading("true"), 422, loc="value"),
    "13 object": Body(reading("{}"), 422, loc="value"),
    "13 a name that is no text": Body(reading("1", "7"), 422, loc="variableName"),
    "16 seconds": Body(reading("1", more=', "recievedAt": 1768905000'), 422, loc="recievedAt"),
    "16 in 2099": Body(reading("1", more=', "recievedAt": "2099-01-01T00:00:00Z"'), 422, loc="recievedAt"),
    "16 in 1970": Body(reading("1", more=', "recievedAt": "1970-01-01T00:00:00Z"'), 422, loc="recievedAt"),
    "not JSON": Body(b"hello", 400),
    "nothing": Body(b"", 400),
}


@pytest.fixture
def nothing_stored(stack: Stack) -> Iterator[None]:
    yield
    for device in stack.demo["devices"]:
        path = f"/api/v1/datastreams?sensorUuid={device['sensorUuid']}&variableName=temperature"
        assert stack.call("GET", path)[1]["readings"] == []


def post(stack: Stack, body: bytes, token: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.post(stack.demo["httpUrl"] + PATH, content=body, headers=headers, timeout=20)


@pytest.mark.parametrize("case", BODIES.values(), ids=BODIES.keys())
@pytest.mark.usefixtures("nothing_stored")
def test_http_refuses(stack: Stack, case: Body) -> None:
    """The status of the table, as a problem that names the field; deep nesting costs nothing."""
    began = time.monotonic()
    answer = post(stack, case.sent, stack.demo["devices"][0]["token"])
    assert time.monotonic() - began < DEEP_SECONDS
    assert answer.status_code == case.http, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert case.loc in [error["loc"] for error in answer.json()["errors"]] or not case.loc


@pytest.mark.usefixtures("nothing_stored")
def test_mqtt_acknowledges_and_explains(stack: Stack) -> None:
    """What can never be valid is acknowledged and explained on the errors topic, and the connection is kept."""
    device, address = stack.demo["devices"][1], stack.demo["mqtt"]
    explained: list[Any] = []
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.username_pw_set(device["uuid"], device["token"])
    client.on_message = lambda _client, _data, message: explained.append(json.loads(message.payload))
    subscribed: list[int] = []
    client.on_subscribe = lambda *_: subscribed.append(1)
    client.connect(address["host"], address["port"])
    client.subscribe(f"aemos/devices/{device['uuid']}/errors", 1)
    client.loop_start()
    try:
        eventually(lambda: bool(subscribed))
        for case in BODIES.values():
            published = client.publish(f"aemos/devices/{device['uuid']}/telemetry", case.sent, qos=1)
            published.wait_for_publish(10)
            assert published.is_published()
        eventually(lambda: len(explained) == len(BODIES))
        assert client.is_connected()
    finally:
        client.loop_stop()
        client.disconnect()
    locs = [{error["loc"] for error in one["errors"]} for one in explained]
    assert all(case.loc in found or not case.loc for case, found in zip(BODIES.values(), locs, strict=True))


@pytest.mark.usefixtures("nothing_stored")
async def test_coap_refuses(stack: Stack) -> None:
    """The code of the table; what does not fit a datagram is tested with Block1 at the edge."""
    host, port = stack.demo["coapUrl"].removeprefix("coap://").split(":")
    token = stack.demo["devices"][2]["token"].encode()
    async with raw_client(int(port), host) as client:
        for mid, (name, case) in enumerate(BODIES.items(), 100):
            if len(case.sent) < 1024:
                answer = await client.ask(coap_client.reading(case.sent, device=token, mid=mid))
                assert answer.code.dotted == case.coap, name


CHAIN = b'{"name": "n", "nodes": [{"type": "filter", "name": "f", "config": {"x": %b}}]}'
WRITTEN = [
    ("devices", 413, b'{"name": "' + b"x" * 2**20 + b'"}'),
    ("devices", 400, b"[" * 100_000),
    ("devices", 400, b'{"name": "\xff"}'),
    ("devices", 400, b'{"name": "a\\u0000b"}'),
    ("devices", 400, b'{"name": NaN}'),
    ("devices", 422, b'{"name": 1e400}'),
    ("devices", 422, b"[]"),
    ("rule-chains", 422, CHAIN % (b"9" * 400)),
    ("rule-chains", 400, CHAIN % (b"[" * 500 + b"]" * 500)),
    ("rule-chains", 400, CHAIN % (b"[" * 58 + b"]" * 58)),
]


@pytest.mark.parametrize(("path", "status", "body"), WRITTEN)
def test_rest_refuses(stack: Stack, path: str, status: int, body: bytes) -> None:
    """Rows 6, 8, 9, 10 and 12 where users write."""
    began = time.monotonic()
    assert stack.call("POST", f"/api/v1/{path}", body)[0] == status
    assert time.monotonic() - began < DEEP_SECONDS


def unsigned(claims: dict[str, Any]) -> str:
    """A token of algorithm none."""
    parts = (json.dumps(part).encode() for part in ({"alg": "none", "typ": "JWT"}, claims))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts) + "."


def forged_tokens(genuine: str, public_key: bytes) -> dict[str, str]:
    """Row 25: what must never be taken for a user's token."""
    header, claims = jwt.get_unverified_header(genuine), jwt.decode(genuine, options={"verify_signature": False})
    own, now = Ed25519PrivateKey.generate(), int(time.time())

    def signed(changed: dict[str, Any] | None = None, kid: str = header["kid"], without: str = "") -> str:
        body = {key: value for key, value in {**claims, **(changed or {})}.items() if key != without}
        return jwt.encode(body, own, algorithm="EdDSA", headers={"kid": kid})

    head, body, signature = genuine.split(".")
    other = base64.urlsafe_b64encode(json.dumps({**claims, "org": 2}).encode()).rstrip(b"=").decode()
    return {
        "no token": "",
        "not a token": "abc",
        "alg none": unsigned(claims),
        "HS256 with the public key": jwt.encode(claims, public_key, "HS256", {"kid": header["kid"]}),
        "another key": signed(),
        "kid traversal": signed(kid="../../../../dev/null"),
        "kid of no key": signed(kid="0" * 16),
        "expired": signed({"exp": now - 10}),
        "not yet": signed({"nbf": now + 3600}),
        "another audience": signed({"aud": "other"}),
        "another issuer": signed({"iss": "other"}),
        "no exp": signed(without="exp"),
        "changed claims": f"{head}.{other}.{signature}",
        "cut signature": f"{head}.{body}.",
        "5,000 characters": genuine + "A" * 5000,
        "a device's token": "",
    }


def test_forged_user_tokens_are_refused(stack: Stack) -> None:
    """401 with WWW-Authenticate over HTTP, UNAUTHENTICATED over gRPC."""
    with grpc.insecure_channel(stack.demo["grpc"]["ingest"]) as channel:
        keys = identity_pb2_grpc.IdentityServiceStub(channel).GetSigningKeys(identity_pb2.GetSigningKeysRequest())
        tokens = forged_tokens(stack.token, keys.keys[0].public_key)
        tokens["a device's token"] = stack.demo["devices"][0]["token"]
        devices = device_pb2_grpc.DeviceServiceStub(channel)
        for name, token in tokens.items():
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            answer = httpx.get(stack.demo["httpUrl"] + "/api/v1/devices", headers=headers, timeout=20)
            assert (answer.status_code, "www-authenticate" in answer.headers) == (401, True), name
            metadata = [("authorization", f"Bearer {token}")] if token else []
            with pytest.raises(grpc.RpcError) as refused:
                devices.ListDevices(device_pb2.ListDevicesRequest(), metadata=metadata, timeout=10)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED, name


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("token", ["", "x", "x" * 5000, "Bearer"])
def test_device_tokens_that_prove_nothing(stack: Stack, token: str) -> None:
    """Row 1: 401 with WWW-Authenticate."""
    answer = post(stack, reading("1"), token)
    assert (answer.status_code, "www-authenticate" in answer.headers) == (401, True)


@pytest.mark.usefixtures("nothing_stored")
def test_only_services_write_readings(stack: Stack) -> None:
    """Row 1 over gRPC: neither nobody, nor a user, nor who guesses the secret."""
    with grpc.insecure_channel(stack.demo["grpc"]["ingest"]) as channel:
        write = data_stream_pb2_grpc.DataStreamServiceStub(channel).WriteReadings
        request = data_stream_pb2.WriteReadingsRequest(readings=[data_stream_pb2.NewReading(token_id=1, value=b"1")])
        expected = {
            "": grpc.StatusCode.UNAUTHENTICATED,
            f"Bearer {stack.token}": grpc.StatusCode.PERMISSION_DENIED,
            "Service guess": grpc.StatusCode.UNAUTHENTICATED,
        }
        for authorization, code in expected.items():
            metadata = [("authorization", authorization)] if authorization else []
            with pytest.raises(grpc.RpcError) as refused:
                write(request, metadata=metadata, timeout=10)
            assert refused.value.code() is code, authorization


async def test_grpc_takes_no_wrong_bytes_and_no_endless_list(stack: Stack) -> None:
    """Rows 6, 8 and 24: each has its code, and nothing of the parser leaks."""
    async with grpc.aio.insecure_channel(stack.demo["grpc"]["ingest"]) as channel:
        list_devices = channel.unary_unary("/aemos.v1.DeviceService/ListDevices")
        unknown = channel.unary_unary("/aemos.v1.DeviceService/Nothing")
        metadata = [("authorization", f"Bearer {stack.token}")]
        for call, sent, code in (
            (list_devices, b"\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
            (list_devices, bytes(5 * 1024 * 1024), grpc.StatusCode.RESOURCE_EXHAUSTED),
            (unknown, b"", grpc.StatusCode.UNIMPLEMENTED),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(sent, metadata=metadata, timeout=10)
            assert refused.value.code() is code


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/v1/devices/{uuid}", None),
        ("PATCH", "/api/v1/devices/{uuid}", {"name": "mine"}),
        ("DELETE", "/api/v1/devices/{uuid}", None),
        ("POST", "/api/v1/devices/{uuid}/tokens", {"name": "mine"}),
        ("GET", "/api/v1/sensors/{sensorUuid}", None),
        ("GET", "/api/v1/datastreams?sensorUuid={sensorUuid}&variableName=temperature", None),
        ("POST", "/api/v1/device-states", {"device": "{uuid}", "name": "mine"}),
        ("GET", "/api/v1/rule-chains/1", None),
        ("PUT", "/api/v1/device-states/1/value", {"value": "mine"}),
    ],
)
def test_what_is_anothers_does_not_exist(stack: Stack, stranger: str, method: str, path: str, body: Any) -> None:
    """Row 3: 404, the same as for what nobody has."""
    device = stack.demo["devices"][0]
    answers = []
    for names in (device, {"uuid": "none", "sensorUuid": "none"}):
        text = json.dumps(body).replace("{uuid}", names["uuid"]) if body is not None else None
        status, problem = stack.call(method, path.format(**names), text and text.encode(), token=stranger)
        answers.append((status, problem["reason"], problem["detail"]))
    assert answers[0][0] == 404
    assert answers[0] == answers[1]


@pytest.fixture(scope="module")
def stranger(stack: Stack) -> str:
    """The token of another organization's administrator."""
    secret = (stack.var / "service-secret").read_text(encoding="ascii")
    login = {"email": "stranger@aemos.example", "password": "a long enough one"}
    with grpc.insecure_channel(stack.demo["grpc"]["ingest"]) as channel:
        made = identity_pb2.CreateOrganizationRequest(
            name="Other", admin_email=login["email"], admin_password=login["password"]
        )
        create = identity_pb2_grpc.IdentityServiceStub(channel).CreateOrganization
        create(made, metadata=[("authorization", f"Service {secret}")], timeout=10)
    return str(stack.call("POST", "/api/v1/auth/login", login, token="")[1]["accessToken"])


def test_values_that_look_odd_are_kept_as_they_are(stack: Stack) -> None:
    """Rows 9 and 11: emoji and right-to-left text come back unchanged; of a repeated key the last one counts."""
    sensor = stack.demo["devices"][2]["sensorUuid"]
    status, made = stack.call(
        "POST", "/api/v1/telemetry-data", {"sensor": sensor, "variableName": "note", "type": "text"}
    )
    assert status == 201, made
    texts = ["🌡️ 25°", "مرحبا", "a\r\nb", "${jndi:ldap://x}"]
    for text in texts:
        answer = post(stack, reading(json.dumps(text), '"note"'), stack.demo["devices"][2]["token"])
        assert (answer.status_code, answer.json()["data"]["value"]) == (201, text)
    twice = post(stack, b'{"value": "1", "value": "2", "variableName": "note"}', stack.demo["devices"][2]["token"])
    assert twice.json()["data"]["value"] == "2"
    found = stack.call("GET", f"/api/v1/datastreams?sensorUuid={sensor}&variableName=note")[1]["readings"]
    assert [one["value"] for one in found] == [*texts, "2"]


async def coap(stack: Stack, *datagrams: bytes) -> str:
    """The code of the answer to the last of these."""
    host, port = stack.demo["coapUrl"].removeprefix("coap://").split(":")
    async with raw_client(int(port), host) as client:
        return [await client.ask(datagram) for datagram in datagrams][-1].code.dotted


@pytest.mark.usefixtures("nothing_stored")
async def test_coap_refuses_who_and_where(stack: Stack) -> None:
    """Rows 1, 3, 6 and 8: no or a wrong token, another's notifications, a block too many, a path that is no text."""
    mine, other = stack.demo["devices"][:2]
    token, large = mine["token"].encode(), [block1(0, True), (coap_client.SIZE1, coap_client.uint(2**20))]
    bad_path = datagram(coap_client.POST, [(coap_client.PATH, b"\xff"), (coap_client.QUERY, b"token=" + token)], b"1")
    for code, sent in (
        ("4.01", coap_client.reading(reading("1"), device=b"")),
        ("4.01", coap_client.reading(reading("1"), device=b"unknown")),
        ("4.01", coap_client.reading(reading("1"), device=b"\xff\xfe")),
        ("4.13", coap_client.reading(b"x" * 1024, device=token, extra=large)),
        ("4.00", bad_path),
        ("4.04", coap_client.notifications(other["uuid"], device=token)),
        ("4.04", coap_client.notifications("nobodys", device=token)),
    ):
        assert await coap(stack, sent) == code, sent


async def test_mqtt_refuses_without_touching_the_live_one(stack: Stack) -> None:
    """Rows 1, 2, 3 and 5: CONNACK 5 though the client id is a live device's; only the device itself takes over."""
    mine, other = stack.demo["devices"][:2]
    entrance = connect(mine["token"], uuid=mine["uuid"], client="c")
    live = await Raw.connected(Door(stack.demo), connect_with=entrance)
    for token in (None, "", "unknown", b"\xff\xfe", "x" * 5000, other["token"]):
        refused = await Raw.open(Door(stack.demo), connect(token, uuid=mine["uuid"], client="c"))
        assert await refused.rest() == [(0x20, b"\0\5")], token
        assert await live.alive()
    stranger = await Raw.connected(
        Door(stack.demo), connect_with=connect(other["token"], uuid=other["uuid"], client="c")
    )
    assert await live.alive()
    new = await Raw.connected(Door(stack.demo), connect_with=entrance)
    assert await live.rest() == []
    assert await new.alive()
    assert await stranger.alive()


@pytest.mark.usefixtures("nothing_stored")
async def test_mqtt_closes_on_what_breaks_the_protocol(stack: Stack) -> None:
    """Rows 3, 6, 8, 20 and 21: no PUBACK and the will is published; of filters only those not its own are refused."""
    mine, other = stack.demo["devices"][:2]
    own, will = (f"aemos/devices/{mine['uuid']}/{name}" for name in ("telemetry", "notifications"))
    entrance = connect(mine["token"], uuid=mine["uuid"], client="c", will=(will, b"{}"))
    door = Door(stack.demo)
    hears = await Raw.connected(door, connect_with=connect(mine["token"], uuid=mine["uuid"], client="hears"))
    foreign = f"aemos/devices/{other['uuid']}/notifications"
    hears.send(subscribe((will, 0), (foreign, 0), ("#", 0), ("aemos/devices/+/notifications", 0), ("$SYS/#", 0)))
    assert await hears.receive() == suback(0, *[0x80] * 4)
    topics = [
        foreign,
        f"aemos/devices/{other['uuid']}/telemetry",
        b"\xff",
        "a\0b",
        "aemos/devices/+/telemetry",
        "#",
        "$SYS",
        "",
    ]
    broken = [publish(topic=topic) for topic in topics]
    broken += [publish(topic=own, qos=3), publish(topic=own, number=0), entrance, b"\x32\x81\x80\x40", b"\xf0\0"]
    for sent in broken:
        client = await Raw.connected(door, sent, connect_with=entrance)
        assert await client.rest() == [], sent
        assert await hears.receive() == (0x30, string(will) + b"{}"), sent
