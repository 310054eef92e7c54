"""What notify talks about: entries of the notification log, and where in it they are."""

from __future__ import annotations

import re
from dataclasses import dataclass

from aemos_core.errors import invalid

_ID = re.compile(r"(\d{1,15})-(\d{1,18})", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class LogId:
    """A place in an organization's log: milliseconds since 1970 UTC and a count within them, as in a Redis stream."""

    ms: int = 0
    seq: int = 0

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"


def parse_log_id(text: str, loc: str) -> LogId:
    """Of "1768905001234-0"; the beginning when empty; INVALID names `loc` otherwise."""
    if not text:
        return LogId()
    match = _ID.fullmatch(text)
    if match is None:
        raise invalid(loc, "is not a notification's id, such as 1768905001234-0")
    return LogId(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class Entry:
    """A notification in the log. `body` is its JSON object without `id`."""

    log_id: LogId
    type: str
    device_uuid: str
    body: str

    @property
    def id(self) -> str:
        """What every delivery carries as `id`."""
        return str(self.log_id)


@dataclass(frozen=True, slots=True)
class Query:
    """Entries behind `after`, oldest first, of one device unless `device_uuid` is empty."""

    after: LogId
    device_uuid: str
