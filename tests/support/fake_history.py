"""A fake history of ingest, as far as the export needs it."""

from __future__ import annotations

import asyncio
from typing import Any

from aemos.v1 import data_stream_pb2 as pb
from aemos.v1 import history_pb2
from aemos_core.errors import AemosError
from aemos_core.identity import Caller
from aemos_core.times import to_timestamp
from aemos_gateway import problems
from aemos_gateway.export import PATH, Export
from fastapi import FastAPI

VALUES = ("25.5", 'a "quoted", text', "two\r\nlines", "größer 🙂", "")


class FakeHistory:
    """`pages` pages of as many readings as are asked for; then what `after` raises, or the end."""

    def __init__(self, pages: int, after: AemosError | None = None) -> None:
        self.pages = pages
        self.after = after
        self.asked: list[history_pb2.QueryHistoryRequest] = []

    async def QueryHistory(self, ask: history_pb2.QueryHistoryRequest, timeout: float) -> pb.QueryReadingsResponse:
        assert timeout > 0
        await asyncio.sleep(0)  # as a call does
        number = int(ask.query.page_token or 0)
        if not self.asked:
            self.asked.append(history_pb2.QueryHistoryRequest.FromString(ask.SerializeToString()))
        if number == self.pages and self.after:
            raise self.after
        size = ask.query.page_size
        readings = [
            pb.Reading(
                id=number * size + i,
                value=VALUES[i % len(VALUES)],
                variable_name="t",
                telemetry_data_id=7,
                sensor_uuid="s",
                recieved_at=to_timestamp(1_700_000_000_123),
            )
            for i in range(size)
        ]
        more = number + 1 < self.pages or self.after is not None
        return pb.QueryReadingsResponse(readings=readings, next_page_token=str(number + 1) if more else "")


class FakeVerifier:
    """Everybody is a viewer of organization 4."""

    async def verify(self, token: str) -> Caller:
        return Caller(4, 1, "viewer", token)


def export_app(history: FakeHistory) -> FastAPI:
    """The export alone."""
    stub: Any = history
    verifier: Any = FakeVerifier()
    app = FastAPI()
    problems.install(app)
    app.state.export = Export(stub, verifier)
    app.add_route(PATH, app.state.export.answer)
    return app
