"""Who calls: user tokens verified with ingest's public keys, and the service secret."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from aemos_core.contract import Access, AccessValue
from aemos_core.errors import AemosError, Kind, unauthenticated

ISSUER = "aemos-ingest"
AUDIENCE = "aemos"
ROLES: dict[str, AccessValue] = {
    "viewer": Access.ACCESS_VIEWER,
    "operator": Access.ACCESS_OPERATOR,
    "admin": Access.ACCESS_ADMIN,
}
"""Role to the highest access it has; a higher one includes the lower."""

_TRUST_SECONDS = 3.0
_STALE_SECONDS = 300.0
_LONGEST_TOKEN = 4_096


@dataclass(frozen=True, slots=True)
class Caller:
    """Who made a call. A service has no user and acts for no organization; `token` is a user's, to pass on.

    `session` is what the user logged in to: all tokens refreshed from one login have the same.
    """

    organization_id: int
    user_id: int
    role: str
    token: str = ""
    expires_at: float = 0.0
    session: int = 0


SERVICE = Caller(0, 0, "service")
ANYBODY = Caller(0, 0, "")
_caller: ContextVar[Caller] = ContextVar("caller", default=ANYBODY)


def caller() -> Caller:
    """Who made the call that is being served."""
    return _caller.get()


def set_caller(who: Caller) -> None:
    """For the edges: whatever this task calls from here on is called as `who`."""
    _caller.set(who)


def check_access(who: Caller, needed: AccessValue) -> None:
    """Raises UNAUTHENTICATED or FORBIDDEN unless `who` may call a method that needs this access."""
    if needed == Access.ACCESS_PUBLIC or (who is SERVICE and needed == Access.ACCESS_SERVICE):
        return
    if not who.role:
        raise unauthenticated()
    if needed == Access.ACCESS_SERVICE or ROLES.get(who.role, 0) < needed:
        raise AemosError(Kind.FORBIDDEN, "your role does not allow this")


def is_service_secret(presented: str, secret: str) -> bool:
    """Whether a caller is another service, compared in constant time."""
    return hmac.compare_digest(presented.encode(), secret.encode())


@dataclass(frozen=True, slots=True)
class Trust:
    """What user tokens are verified with: the keys by `kid`, and the sessions whose tokens prove nothing any more."""

    keys: Mapping[str, Ed25519PublicKey] = field(default_factory=dict)
    ended: frozenset[int] = frozenset()


class TokenVerifier:
    """Verifies user tokens with what ingest says, at most 3 s ago; 5 minutes, while it does not answer."""

    def __init__(self, fetch: Callable[[], Awaitable[Trust]]) -> None:
        self._fetch = fetch
        self._fetching = asyncio.Lock()
        self._trust = Trust()
        self._asked_at = self._answered_at = -_STALE_SECONDS

    async def verify(self, token: str, audience: str = AUDIENCE) -> Caller:
        """The caller that the token proves; UNAUTHENTICATED when it proves nobody."""
        try:
            trust = await self.trust()
            claims = jwt.decode(
                token,
                trust.keys[_kid(token)],
                algorithms=["EdDSA"],
                audience=audience,
                issuer=ISSUER,
                options={"require": ["exp", "iat", "sub", "sid", "aud", "iss"]},
            )
            session = int(claims["sid"])
            if session in trust.ended:
                raise unauthenticated()
            organization_id, user_id = int(claims["org"]), int(claims["sub"])
            return Caller(organization_id, user_id, str(claims["role"]), token, float(claims["exp"]), session)
        except (jwt.InvalidTokenError, KeyError, TypeError, ValueError):
            raise unauthenticated() from None

    async def trust(self) -> Trust:
        """Fetched when it is old, by one of all who ask at once. UNAVAILABLE when ingest was silent for too long."""
        async with self._fetching:
            now = time.monotonic()
            if now - self._asked_at > _TRUST_SECONDS:
                try:
                    self._trust, self._answered_at = await self._fetch(), now
                except AemosError:
                    if now - self._answered_at > _STALE_SECONDS:
                        raise
                self._asked_at = now
        return self._trust


def _kid(token: str) -> str:
    if len(token) > _LONGEST_TOKEN:
        raise jwt.InvalidTokenError
    return str(jwt.get_unverified_header(token).get("kid"))
