"""Organizations, users and their tokens. The private signing keys are here and nowhere else."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from typing import Any

import jwt
from aemos.v1.identity_pb2 import LoginResponse
from aemos_core import audit
from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind, invalid, not_found, unauthenticated
from aemos_core.identity import AUDIENCE, ISSUER, TokenVerifier, caller
from aemos_core.times import now_ms
from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_ingest import tables as t
from aemos_ingest.domain import check_name
from aemos_ingest.registry_store import AnyRow

ACCESS_SECONDS = 15 * 60
REFRESH_SECONDS = 30 * 24 * 60 * 60
_REFRESH_AUDIENCE = "aemos-refresh"
_SHORTEST_PASSWORD = 8
_LONGEST_PASSWORD = 200
_MOST_DAYS = 36_500
_CONCURRENT_HASHES = 2
_WRONG = "e-mail or password is wrong"


class Identity:
    """Use cases of identity. Open with `load_keys` before the first token."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._hasher = PasswordHasher()
        # A hash takes 50 ms of a core and 64 MB: logins wait for each other, not the readings for them.
        self._hashing = asyncio.Semaphore(_CONCURRENT_HASHES)
        self._nobody = self._hasher.hash(secrets.token_hex())
        self._private: dict[str, Ed25519PrivateKey] = {}
        self._kid = ""
        self.verifier = TokenVerifier(self._local_keys)

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

    def public_keys(self) -> Mapping[str, Ed25519PublicKey]:
        """The keys that verify, by kid."""
        return {kid: key.public_key() for kid, key in self._private.items()}

    async def create_organization(self, name: str, email: str, password: str) -> tuple[int, str]:
        """A new organization with its administrator; EXISTS when the e-mail is taken."""
        check_name("name", name)
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
        return organization_id, name

    async def organization(self) -> AnyRow:
        """The caller's organization."""
        async with self._database.read() as connection:
            return await _own(connection)

    async def change_organization(self, name: str | None, retention_days: int | None) -> AnyRow:
        """Changes what is given; readings older than `retention_days` are deleted from then on (0: none)."""
        values: dict[str, Any] = {} if name is None else {"name": check_name("name", name)}
        if retention_days is not None:
            if not 0 <= retention_days <= _MOST_DAYS:
                raise invalid("retentionDays", f"must be 0 to {_MOST_DAYS}")
            values["retention_days"] = retention_days
        async with self._database.write() as connection:
            found = await _own(connection)
            if values:
                own = t.organization.c.id == found.id
                await connection.execute(update(t.organization).where(own).values(**values))
                await audit.record(connection, t.audit, "organization.update", f"organization {found.id}")
            return await _own(connection)

    async def login(self, email: str, password: str) -> LoginResponse:
        """Tokens for an e-mail and a password; as slow for an unknown e-mail as for a wrong password."""
        query = select(t.user).where(t.user.c.email == email.lower()[:254])
        async with self._database.read() as connection:
            found = (await connection.execute(query)).first()
        if not await self._matches(found.password_hash if found else self._nobody, password) or found is None:
            raise AemosError(Kind.UNAUTHENTICATED, _WRONG, reason="wrong_credentials")
        return self._tokens(found.id, found.organization_id, found.role)

    async def refresh(self, refresh_token: str) -> LoginResponse:
        """New tokens for a refresh token, with the role that the user has now."""
        known = await self.verifier.verify(refresh_token, _REFRESH_AUDIENCE)
        async with self._database.read() as connection:
            found = (await connection.execute(select(t.user).where(t.user.c.id == known.user_id))).first()
        if found is None:
            raise unauthenticated()
        return self._tokens(found.id, found.organization_id, found.role)

    async def _matches(self, hashed: str, password: str) -> bool:
        async with self._hashing:
            try:
                return await asyncio.to_thread(self._hasher.verify, hashed, password[:_LONGEST_PASSWORD])
            except (Argon2Error, InvalidHashError):
                return False

    async def _local_keys(self) -> Mapping[str, Ed25519PublicKey]:
        return self.public_keys()

    def _tokens(self, user_id: int, organization_id: int, role: str) -> LoginResponse:
        now = int(time.time())
        claims = {"iss": ISSUER, "sub": str(user_id), "org": organization_id, "role": role, "iat": now, "nbf": now}

        def sign(audience: str, seconds: int) -> str:
            body = {**claims, "aud": audience, "exp": now + seconds}
            return jwt.encode(body, self._private[self._kid], algorithm="EdDSA", headers={"kid": self._kid})

        access, refresh = sign(AUDIENCE, ACCESS_SECONDS), sign(_REFRESH_AUDIENCE, REFRESH_SECONDS)
        return LoginResponse(access_token=access, refresh_token=refresh, expires_in=ACCESS_SECONDS)


async def _own(connection: AsyncConnection) -> AnyRow:
    query = select(t.organization).where(t.organization.c.id == caller().organization_id)
    row = (await connection.execute(query)).first()
    if row is None:
        raise not_found("organization")
    return row
