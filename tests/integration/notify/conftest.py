"""Notify's worker on each database."""

from __future__ import annotations

from typing import Any

import aemos_notify
import pytest

from tests.support.notify_worker import NotifyWorker


@pytest.fixture
async def notify(open_owned: Any) -> NotifyWorker:
    return NotifyWorker(await open_owned(aemos_notify))
