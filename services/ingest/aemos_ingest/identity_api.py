"""The servicer of organizations, users and tokens. The private signing keys are here and nowhere else."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

import jwt
from aemos.v1 import identity_pb2 as pb
from aemos.v1 import identity_pb2_grpc
from aemos_core import audit
from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind, invalid, not_found, unauthenticated
from aemos_core.identity import AUDIENCE, ISSUER, TokenVerifier, Trust, caller
from aemos_core.rpc import Context
from aemos_core.times import now_ms
from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_ingest import codec, registry_store
from aemos_ingest import tables as t
from aemos_ingest.domain import check_name
from aemos_ingest.registry_store import AnyRow
from aemos_ingest.sightings import Sightings

ACCESS_SECONDS = 15 * 60
REFRESH_SECONDS = 30 * 24 * 60 * 60
_CLOCK_SECONDS = 60
_REFRESH_AUDIENCE = "aemos-refresh"
_SHORTEST_PASSWORD = 8
_LONGEST_PASSWORD = 200
_MOST_DAYS = 36_500
_MOST_RESOLVED = 1_000
_CONCURRENT_HASHES = 2
_WRONG = "e-mail or password is wrong"


class IdentityServicer(identity_pb2_grpc.IdentityServiceServicer):
    """Who is who. Open with `load_keys` before the first token."""

    def __init__(self, database: Database, sightings: Sightings) -> None:
        self._database = database
        self._sightings = sightings
        self._hasher = PasswordHasher()
        # A hash takes 50 ms of a core and 64 MB: logins wait for each other, not the readings for them.
        self._hashing = asyncio.Semaphore(_CONCURRENT_HASHES)
        self._nobody = self._hasher.hash(secrets.token_hex())
        self._private: dict[str, Ed25519PrivateKey] = {}
        self._kid = ""
        self.verifier = TokenVerifier(self._trust)

    async def load_keys(self) -> None:
        """Reads the signing keys, making the first one; the newest signs."""
        query = select(t.signing_key).order_by(t.signing_key.c.created_at_ms, t.signing_key.c.kid)
        async with self._database.write() as connection:
            rows = (await connection.execute(query)).all()
            if not rows:
                fresh = {"kid": secrets.token_hex(8), "private_key": Ed25519PrivateKey.generate().private_bytes_raw()}
                await connection.execute(insert(t.signing_key).values(**fresh, created_at_ms=now_ms()))
                rows = (await connection.execute(query)).all()
        self._private = {row.kid: Ed25519PrivateKey.from_private_bytes(row.private_key) for row in rows}
        self._kid = rows[-1].kid

    async def GetSigningKeys(self, request: pb.GetSigningKeysRequest, context: Context) -> pb.GetSigningKeysResponse:
        trust = await self._trust()
        keys = [pb.SigningKey(kid=kid, public_key=key.public_bytes_raw()) for kid, key in trust.keys.items()]
        return pb.GetSigningKeysResponse(keys=keys, ended_sessions=trust.ended)

    async def CreateOrganization(self, request: pb.CreateOrganizationRequest, context: Context) -> pb.Organization:
        """With its administrator; EXISTS when the e-mail is taken."""
        name, email, password = check_name("name", request.name), request.admin_email, request.admin_password
        if not 3 <= len(email) <= 254 or "@" not in email:
            raise invalid("adminEmail", "is no e-mail address")
        if not _SHORTEST_PASSWORD <= len(password) <= _LONGEST_PASSWORD:
            raise invalid("adminPassword", f"must have {_SHORTEST_PASSWORD} to {_LONGEST_PASSWORD} characters")
        async with self._hashing:
            hashed = await asyncio.to_thread(self._hasher.hash, password)
        async with self._database.write() as connection:
            created = await connection.execute(insert(t.organization).values(name=name, created_at_ms=now_ms()))
            organization_id = int(created.inserted_primary_key[0])  # type: ignore[index]
            await connection.execute(
                insert(t.user).values(
                    organization_id=organization_id,
                    email=email.lower(),
                    password_hash=hashed,
                    role="admin",
                    created_at_ms=now_ms(),
                )
            )
        return pb.Organization(id=organization_id, name=name)

    async def GetOrganization(self, request: pb.GetOrganizationRequest, context: Context) -> pb.Organization:
        async with self._database.read() as connection:
            return codec.organization(await _own(connection))

    async def UpdateOrganization(self, request: pb.UpdateOrganizationRequest, context: Context) -> pb.Organization:
        """Readings older than `retention_days` are deleted from then on (0: none)."""
        values: dict[str, Any] = {}
        if request.HasField("name"):
            values["name"] = check_name("name", request.name)
        if request.HasField("retention_days"):
            if not 0 <= request.retention_days <= _MOST_DAYS:
                raise invalid("retentionDays", f"must be 0 to {_MOST_DAYS}")
            values["retention_days"] = request.retention_days
        async with self._database.write() as connection:
            found = await _own(connection)
            if values:
                own = t.organization.c.id == found.id
                await connection.execute(update(t.organization).where(own).values(**values))
                await audit.record(connection, t.audit, "organization.update", f"organization {found.id}")
            return codec.organization(await _own(connection))

    async def Login(self, request: pb.LoginRequest, context: Context) -> pb.LoginResponse:
        """As slow for an unknown e-mail as for a wrong password."""
        query = select(t.user).where(t.user.c.email == request.email.lower()[:254])
        async with self._database.read() as connection:
            found = (await connection.execute(query)).first()
        known = await self._matches(found.password_hash if found else self._nobody, request.password)
        if not known or found is None:
            raise AemosError(Kind.UNAUTHENTICATED, _WRONG, reason="wrong_credentials")
        return self._tokens(found, secrets.randbits(63))

    async def RefreshLogin(self, request: pb.RefreshLoginRequest, context: Context) -> pb.LoginResponse:
        """With the role that the user has now."""
        known = await self.verifier.verify(request.refresh_token, _REFRESH_AUDIENCE)
        ended = select(t.ended_session.c.id).where(t.ended_session.c.id == known.session)
        query = select(t.user).where(t.user.c.id == known.user_id, ~ended.exists())
        async with self._database.read() as connection:
            found = (await connection.execute(query)).first()
        if found is None:
            raise unauthenticated()
        return self._tokens(found, known.session)

    async def Logout(self, request: pb.LogoutRequest, context: Context) -> pb.LogoutResponse:
        """Of the session that the caller's token names."""
        who = caller()
        try:
            async with self._database.write() as connection:
                await connection.execute(insert(t.ended_session).values(id=who.session, at_ms=now_ms()))
                await audit.record(connection, t.audit, "session.end", f"user {who.user_id}")
        except AemosError as error:
            if error.kind is not Kind.EXISTS:  # it has ended already, a moment ago
                raise
        return pb.LogoutResponse()

    async def ResolveDeviceTokens(
        self, request: pb.ResolveDeviceTokensRequest, context: Context
    ) -> pb.ResolveDeviceTokensResponse:
        digests = request.token_sha256
        if len(digests) > _MOST_RESOLVED:
            raise invalid("tokenSha256", f"must have at most {_MOST_RESOLVED}")
        async with self._database.read() as connection:
            rows = await registry_store.valid_tokens(connection, t.device_token.c.token_sha256.in_(digests))
        self._sightings.saw(row.id for row in rows)
        found = {row.token_sha256: row for row in rows}
        return pb.ResolveDeviceTokensResponse(devices=[codec.device_identity(found.get(one)) for one in digests])

    async def ListRegistryChanges(
        self, request: pb.ListRegistryChangesRequest, context: Context
    ) -> pb.ListRegistryChangesResponse:
        """Nothing has changed for whoever asks for the first time; `now_ms` is what to ask from next."""
        now = now_ms()
        if not request.since_ms:
            return pb.ListRegistryChangesResponse(now_ms=now)
        async with self._database.read() as connection:
            changed = await registry_store.changes_since(connection, request.since_ms)
        return pb.ListRegistryChangesResponse(device_ids=changed, now_ms=now)

    async def _matches(self, hashed: str, password: str) -> bool:
        async with self._hashing:
            try:
                return await asyncio.to_thread(self._hasher.verify, hashed, password[:_LONGEST_PASSWORD])
            except (Argon2Error, InvalidHashError):
                return False

    async def _trust(self) -> Trust:
        lately = t.ended_session.c.at_ms > now_ms() - (ACCESS_SECONDS + _CLOCK_SECONDS) * 1_000
        async with self._database.read() as connection:
            ended = (await connection.execute(select(t.ended_session.c.id).where(lately))).scalars().all()
        return Trust({kid: key.public_key() for kid, key in self._private.items()}, frozenset(ended))

    def _tokens(self, user: AnyRow, session: int) -> pb.LoginResponse:
        now = int(time.time())
        claims: dict[str, Any] = {"iss": ISSUER, "sub": str(user.id), "sid": str(session), "iat": now, "nbf": now}
        claims |= {"org": user.organization_id, "role": user.role}

        def sign(audience: str, seconds: int) -> str:
            body = {**claims, "aud": audience, "exp": now + seconds}
            return jwt.encode(body, self._private[self._kid], algorithm="EdDSA", headers={"kid": self._kid})

        access, refresh = sign(AUDIENCE, ACCESS_SECONDS), sign(_REFRESH_AUDIENCE, REFRESH_SECONDS)
        return pb.LoginResponse(access_token=access, refresh_token=refresh, expires_in=ACCESS_SECONDS)


async def _own(connection: AsyncConnection) -> AnyRow:
    query = select(t.organization).where(t.organization.c.id == caller().organization_id)
    row = (await connection.execute(query)).first()
    if row is None:
        raise not_found("organization")
    return row
