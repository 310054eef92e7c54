"""Pages of a list: keyset pages by an id that only grows, behind an opaque token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from aemos_core.errors import invalid

_DEFAULT, _MOST = 100, 1000
_LARGEST = 2**63 - 1
"""What a database takes for an id."""
T = TypeVar("T")


class PageRequest(Protocol):
    """Any List request of the contract."""

    @property
    def page_size(self) -> int:
        """0 for the default."""

    @property
    def page_token(self) -> str:
        """Empty for the first page."""


@dataclass(frozen=True, slots=True)
class Page:
    """What to read: `limit` rows behind the keys in `after` (0 before the first row)."""

    limit: int
    after: int

    def cut(self, rows: Sequence[T], key: str = "id") -> tuple[Sequence[T], str]:
        """The page's rows out of at most limit + 1 that were read, and the token of the next page."""
        if len(rows) <= self.limit:
            return rows, ""
        return rows[: self.limit], str(getattr(rows[self.limit - 1], key))


def page_of(request: PageRequest, most: int = _MOST) -> Page:
    """The page a request asks for; INVALID names `pageSize` or `pageToken`."""
    if not 0 <= request.page_size <= most:
        raise invalid("pageSize", f"must be 1 to {most}")
    token = request.page_token
    if token and not (token.isascii() and token.isdigit() and len(token) < 20 and int(token) <= _LARGEST):
        raise invalid("pageToken", "is not one that a list gave")
    return Page(request.page_size or _DEFAULT, int(token or 0))
