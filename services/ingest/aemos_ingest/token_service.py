"""Use cases of device tokens: made, listed, rotated and revoked by administrators, resolved for the gateway."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind, invalid
from aemos_core.identity import caller
from aemos_core.paging import Page
from aemos_core.times import now_ms

from aemos_ingest import registry_store as store
from aemos_ingest import tables as t
from aemos_ingest.domain import check_name
from aemos_ingest.registry_service import Listed, new_row
from aemos_ingest.registry_store import AnyRow
from aemos_ingest.sightings import Sightings

MOST_OVERLAP_SECONDS = 30 * 24 * 60 * 60
MOST_RESOLVED = 1_000


class DeviceTokens:
    """Tokens of the caller's organization. What ends one is told to whoever keeps a copy, after its commit."""

    def __init__(self, database: Database, announce: Callable[[], Awaitable[None]], sightings: Sightings) -> None:
        self._database = database
        self._announce = announce
        self._sightings = sightings

    async def create(
        self, device: str, name: str, sensor_uuid: str = "", expires_at_ms: int | None = None
    ) -> tuple[AnyRow, str]:
        """A new token: its row, and the secret that is shown this once."""
        if expires_at_ms is not None and expires_at_ms <= now_ms():
            raise invalid("expiresAt", "must be in the future")
        async with self._database.write() as connection:
            owner = await store.get_device(connection, caller().organization_id, device)
            sensor_id = await _sensor_of(connection, owner.id, sensor_uuid) if sensor_uuid else None
            values = {"sensor_id": sensor_id, "name": check_name("name", name), "expires_at_ms": expires_at_ms}
            return await _add(connection, owner.id, values)

    async def page(self, device: str, page: Page) -> Listed:
        """A page of a device's tokens, and the token of the next page."""
        async with self._database.read() as connection:
            owner = await store.get_device(connection, caller().organization_id, device)
            return page.cut(await store.list_tokens(connection, owner.id, page.after, page.limit))

    async def rotate(self, device: str, token_id: int, overlap_seconds: int) -> tuple[AnyRow, str]:
        """A new token like an old one, which ends after the overlap; STALE when it has ended already."""
        if not 0 <= overlap_seconds <= MOST_OVERLAP_SECONDS:
            raise invalid("overlapSeconds", f"must be 0 to {MOST_OVERLAP_SECONDS}")
        now = now_ms()
        async with self._database.write() as connection:
            owner = await store.get_device(connection, caller().organization_id, device)
            old = await store.get_token(connection, owner.id, token_id, lock=True)
            if old.revoked_at_ms is not None or (old.expires_at_ms or now + 1) <= now:
                raise AemosError(Kind.STALE, "the token is no longer valid")
            lifetime = old.expires_at_ms and old.expires_at_ms - old.created_at_ms
            values = {"sensor_id": old.sensor_id, "name": old.name, "expires_at_ms": lifetime and now + lifetime}
            made = await _add(connection, owner.id, values)
            await store.change(
                connection, t.device_token, owner.id, old.id, _ended(old, now, overlap_seconds), "rotate"
            )
        await self._announce()
        return made

    async def revoke(self, device: str, token_id: int) -> None:
        """Ends a token; again is the same as once."""
        async with self._database.write() as connection:
            owner = await store.get_device(connection, caller().organization_id, device)
            found = await store.get_token(connection, owner.id, token_id, lock=True)
            if found.revoked_at_ms is None:
                ended = {"revoked_at_ms": now_ms()}
                await store.change(connection, t.device_token, owner.id, token_id, ended, "revoke")
        await self._announce()

    async def resolve(self, digests: Collection[bytes]) -> Mapping[bytes, AnyRow]:
        """The valid ones of the tokens with these SHA-256, each with its device."""
        if len(digests) > MOST_RESOLVED:
            raise invalid("tokenSha256", f"must have at most {MOST_RESOLVED}")
        async with self._database.read() as connection:
            found = {row.token_sha256: row for row in await store.find_tokens(connection, digests)}
        self._sightings.saw(row.id for row in found.values())
        return found


async def _add(connection: Any, device_id: int, values: dict[str, Any]) -> tuple[AnyRow, str]:
    secret = secrets.token_urlsafe(24)
    digest = hashlib.sha256(secret.encode()).digest()
    row = new_row(device_id=device_id, token_sha256=digest, **values)
    token_id = await store.add(connection, t.device_token, device_id, row)
    return await store.get_token(connection, device_id, token_id), secret


async def _sensor_of(connection: Any, device_id: int, uuid: str) -> int:
    found = await store.get_sensor(connection, caller().organization_id, uuid)
    if found.device_id != device_id:
        raise invalid("sensorUuid", "is no sensor of this device")
    return int(found.id)


def _ended(token: AnyRow, now: int, overlap_seconds: int) -> dict[str, int]:
    if not overlap_seconds:
        return {"revoked_at_ms": now}
    end = now + overlap_seconds * 1000
    return {"expires_at_ms": min(end, token.expires_at_ms or end)}
