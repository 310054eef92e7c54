"""Who goes on only for as long as a device token holds: open connections and observations."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from aemos_core.errors import AemosError, Kind

from aemos_gateway.device_auth import DeviceAuth

_AT_ONCE = 32
"""Tokens that ingest is asked about at the same time."""
_LOOK_SECONDS = 1.0
"""A look takes no longer: what ingest answers afterwards is known at the next one."""


class TokenHolders:
    """The holders of one edge, by the token that each came with."""

    def __init__(self, auth: DeviceAuth) -> None:
        self._auth = auth
        self._ends: defaultdict[bytes, set[Callable[[], None]]] = defaultdict(set)

    @contextmanager
    def holding(self, token: bytes, end: Callable[[], None]) -> Iterator[None]:
        """While the block lasts, `end` is called at each look at which the token proves nothing any more."""
        self._ends[token].add(end)
        try:
            yield
        finally:
            self._ends[token].remove(end)
            if not self._ends[token]:
                del self._ends[token]

    async def check(self) -> None:
        """Looks at those whose tokens are not known to hold: revoked, expired, or just not looked at for long."""
        unsure = [token for token in self._ends if self._auth.known(token) is None]
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_SECONDS):
                for at in range(0, len(unsure), _AT_ONCE):
                    if not all(await asyncio.gather(*map(self._check, unsure[at : at + _AT_ONCE]))):
                        return  # ingest does not answer: who was proven stays

    async def _check(self, token: bytes) -> bool:
        try:
            await self._auth.resolve(token)
        except AemosError as error:
            if error.kind is not Kind.UNAUTHENTICATED:
                return False
            for end in list(self._ends.get(token, ())):
                end()
        return True
