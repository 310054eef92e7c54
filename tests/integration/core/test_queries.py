"""Connections for queries of any length: few, and bounded on the server too."""

from __future__ import annotations

import pytest
from aemos_core.database import migrate, open_database
from aemos_core.errors import AemosError, Kind
from sqlalchemy import text

_BOUND = text("SELECT @@max_statement_time")


async def test_what_a_caller_gave_up_ends_on_the_server_too(mariadb_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many statements run as there are connections: none goes on unseen beside those that came after it."""
    url = mariadb_url.format(service="queries")
    await migrate(url, "aemos_scheduler")
    async with open_database(url, 1, for_queries=True) as queries, open_database(url) as others:
        async with queries.read() as one, others.read() as other:
            assert ((await one.execute(_BOUND)).scalar(), (await other.execute(_BOUND)).scalar()) == (4.0, 0.0)
        async with queries.read() as connection:
            await connection.execute(text("SET SESSION max_statement_time = 0.05"))
        with pytest.raises(AemosError) as cut:
            async with queries.read() as connection:
                await connection.execute(text("SELECT MAX(seq % 7) FROM seq_1_to_100000000"))
        assert cut.value.kind is Kind.UNAVAILABLE
