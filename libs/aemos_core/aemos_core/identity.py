"""Who calls: user tokens verified with ingest's public keys, and the service secret."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass

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

_KEYS_SECONDS = 300.0
_UNKNOWN_KID_SECONDS = 5.0
_LONGEST_TOKEN = 4_096


@dataclass(frozen=True, slots=True)
class Caller:
    """Who made a call. A service has no user and acts for no organization; `token` is a user's, to pass on."""

    organization_id: int
    user_id: int
    role: str
    token: str = ""
    expires_at: float = 0.0


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


Keys = Mapping[str, Ed25519PublicKey]


class TokenVerifier:
    """Verifies user tokens with keys that it fetches and keeps five minutes.

    A token with an unknown `kid` makes it fetch again, at most every 5 s, so a flood of forged ones costs nothing.
    """

    def __init__(self, fetch_keys: Callable[[], Awaitable[Keys]]) -> None:
        self._fetch = fetch_keys
        self._keys: Keys = {}
        self._fetched_at = -_KEYS_SECONDS

    async def verify(self, token: str, audience: str = AUDIENCE) -> Caller:
        """The caller that the token proves; UNAUTHENTICATED when it proves nobody."""
        try:
            key = await self._key(token)
            claims = jwt.decode(
                token,
                key,
                algorithms=["EdDSA"],
                audience=audience,
                issuer=ISSUER,
                options={"require": ["exp", "iat", "sub", "aud", "iss"]},
            )
            return Caller(int(claims["org"]), int(claims["sub"]), str(claims["role"]), token, float(claims["exp"]))
        except (jwt.InvalidTokenError, KeyError, TypeError, ValueError):
            raise unauthenticated() from None

    async def _key(self, token: str) -> Ed25519PublicKey:
        if len(token) > _LONGEST_TOKEN:
            raise jwt.InvalidTokenError
        kid = jwt.get_unverified_header(token).get("kid")
        age = time.monotonic() - self._fetched_at
        if age > _KEYS_SECONDS or (kid not in self._keys and age > _UNKNOWN_KID_SECONDS):
            self._keys = await self._fetch()
            self._fetched_at = time.monotonic()
        return self._keys[str(kid)]
