"""Socket.IO: whose tokens let in, and for how long."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
import socketio
from aemos_core.announce import Announcer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.fake_registry import FakeRegistry
from tests.support.notify import (
    WITHIN_S,
    announcement,
    bare,
    browser,
    running_notify,
)
from tests.support.redis_server import until

pytestmark = pytest.mark.asyncio


def forged(registry: FakeRegistry, algorithm: str, key: bytes) -> str:
    """A token with a good one's claims and kid, signed by hand with HMAC, or not at all."""

    def part(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    head = part(json.dumps({"alg": algorithm, "typ": "JWT", "kid": "k1"}).encode())
    signed = head + b"." + part(json.dumps(registry.claims()).encode())
    signature = hmac.new(key, signed, hashlib.sha256).digest() if key else b""
    return (signed + b"." + part(signature)).decode()


BAD_TOKENS: dict[str, Callable[[FakeRegistry], Any]] = {
    "nothing": lambda r: None,
    "empty": lambda r: "",
    "no text": lambda r: {"alg": "none"},
    "garbage": lambda r: "a.b.c",
    "lone surrogate": lambda r: "\ud800",
    "huge": lambda r: "x" * 30_000,
    "alg none": lambda r: forged(r, "none", b""),
    "HS256 with the raw public key": lambda r: forged(r, "HS256", r.key.public_key().public_bytes_raw()),
    "HS256 with the PEM public key": lambda r: forged(
        r, "HS256", r.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    ),
    "EdDSA by somebody else": lambda r: jwt.encode(
        r.claims(), Ed25519PrivateKey.generate(), "EdDSA", headers={"kid": "k1"}
    ),
    "kid traversal": lambda r: jwt.encode(r.claims(), r.key, "EdDSA", headers={"kid": "../../dev/null"}),
    "expired": lambda r: r.token(exp=time.time() - 1),
    "not yet valid": lambda r: r.token(nbf=time.time() + 60),
    "wrong aud": lambda r: r.token(aud="others"),
    "wrong iss": lambda r: r.token(iss="others"),
    "no exp": lambda r: r.token(exp=None),
}


async def test_bad_tokens_are_refused(redis_url: str, tmp_path: Path) -> None:
    """Every token of hard case 25, and none at all, is answered by CONNECT_ERROR "unauthenticated"."""
    async with running_notify(redis_url, tmp_path) as notify:
        for name, token in BAD_TOKENS.items():
            client = socketio.AsyncClient(reconnection=False)
            reasons: list[Any] = []
            client.on("connect_error", reasons.append)
            auth = {"token": token(notify.registry)} if name != "nothing" else None
            with pytest.raises(socketio.exceptions.ConnectionError):
                await client.connect(notify.url, auth=auth, transports=["websocket"])
            assert reasons == [{"message": "unauthenticated"}], name
            await client.disconnect()


async def test_tokens_without_a_verifier_are_refused_as_unavailable(redis_url: str, tmp_path: Path) -> None:
    """When ingest does not answer, a token is neither good nor bad: the client is told to come again."""
    async with running_notify(redis_url, tmp_path, ingest_target="127.0.0.1:1") as notify, bare(notify) as connection:
        await connection.send("40" + json.dumps({"token": notify.registry.token()}))
        assert await connection.recv() == '44{"message":"unavailable"}'


async def test_expired_session_ends_with_a_reason(redis_url: str, tmp_path: Path) -> None:
    """When its token expires the client hears `session-expired`, is disconnected, and hears no more."""
    async with (
        running_notify(redis_url, tmp_path) as notify,
        browser(notify, notify.registry.token(exp=time.time() + 3)) as client,
    ):
        await client.subscribe({"deviceId": 42})
        await until(lambda: client.left, WITHIN_S)
        await Announcer(notify.redis).announce([announcement("e1")])
        assert client.heard == [("session-expired", {"reason": "token_expired"})]


async def test_the_connections_of_a_user_who_logged_out_end(redis_url: str, tmp_path: Path) -> None:
    """Within 5 s the clients of the ended session are disconnected with a reason; another session's go on."""
    async with (
        running_notify(redis_url, tmp_path) as notify,
        browser(notify, notify.registry.token(sid="11")) as gone,
        browser(notify, notify.registry.token(sid="12")) as stays,
    ):
        notify.registry.ended.add(11)
        await until(lambda: gone.left, 5)
        assert gone.heard == [("session-expired", {"reason": "session_ended"})]
        assert not stays.left


async def test_a_session_is_renewed(redis_url: str, tmp_path: Path) -> None:
    """`refresh` with a new token of the same user keeps the session; another user's, or none, leaves it as it was."""
    async with running_notify(redis_url, tmp_path) as notify:
        soon, later = notify.registry.token(exp=time.time() + 2), notify.registry.token(exp=time.time() + 600)
        async with browser(notify, soon) as kept, browser(notify, soon) as ended:
            assert (await kept.subscribe({"token": later}, event="refresh"))["expiresAt"].endswith("Z")
            for token in (notify.registry.token(2), notify.registry.token(sub="8")):
                assert (await ended.subscribe({"token": token}, event="refresh"))["reason"] == "invalid"
            for argument in ({"token": "x"}, {}, None):
                assert (await ended.subscribe(argument, event="refresh"))["reason"] == "unauthenticated"
            await until(lambda: ended.left, WITHIN_S)
            assert ended.heard == [("session-expired", {"reason": "token_expired"})]
            assert (await kept.subscribe({"deviceId": 42}))["ok"]
            assert kept.heard == []
