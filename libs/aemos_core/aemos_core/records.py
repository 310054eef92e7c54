"""Rows of an organization: one or NOT_FOUND, a page of many, and each as the message of the contract that it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, TypeAlias, TypeVar

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Column, Row, Select, Table, select
from sqlalchemy.ext.asyncio import AsyncConnection

from aemos_core.errors import not_found
from aemos_core.identity import caller
from aemos_core.paging import Page
from aemos_core.times import to_timestamp

MOST_BYTES = 3 * 1024 * 1024
"""Of a page: an answer has at most 4 MiB."""
M = TypeVar("M", bound=Message)
AnyRow: TypeAlias = Row[*tuple[Any, ...]]


async def own(connection: AsyncConnection, table: Table, row_id: int, lock: bool = False) -> AnyRow:
    """The row of the caller's organization with this id, locked until the transaction ends when asked."""
    query = select(table).where(table.c.organization_id == caller().organization_id, table.c.id == row_id)
    row = (await connection.execute(query.with_for_update() if lock else query)).first()
    if row is None:
        raise not_found(table.name.replace("_", " "))
    return row


async def listed(
    connection: AsyncConnection, query: Select[Any], key: Column[Any], page: Page, newest_first: bool = False
) -> tuple[Sequence[AnyRow], str]:
    """A page of a query's rows in the order of `key`, which only grows, and the token of the next."""
    if page.after:
        query = query.where(key < page.after if newest_first else key > page.after)
    query = query.order_by(key.desc() if newest_first else key).limit(page.limit + 1)
    return page.cut((await connection.execute(query)).all(), key.name)


def fitting(page: Iterable[M], token: str) -> tuple[list[M], str]:
    """The first of a page's messages, which have an `id`, that fit into an answer together, one at least; and the token
    of the next page."""
    kept, size = list[M](), 0
    for one in page:
        size += one.ByteSize()
        if kept and size > MOST_BYTES:
            return kept, str(kept[-1].id)  # type: ignore[attr-defined]
        kept.append(one)
    return kept, token


def message(kind: type[M], row: Any, /, **given: Any) -> M:
    """The message of a row.

    A field is the column of its name, a time the one with `_ms` behind it; NULL and the time 0 stay unset. `given` has
    the fields that are not columns; repeated fields and other messages are left to the caller.
    """
    for name, column, is_time in _columns(kind.DESCRIPTOR):
        if name in given or (value := getattr(row, column)) is None:
            continue
        if not is_time:
            given[name] = value
        elif value:
            given[name] = to_timestamp(value)
    return kind(**given)


@cache
def _columns(descriptor: Descriptor) -> list[tuple[str, str, bool]]:
    found = []
    for field in descriptor.fields:
        is_time = field.message_type is Timestamp.DESCRIPTOR
        if not field.is_repeated and (is_time or field.message_type is None):
            found.append((field.name, f"{field.name}_ms" if is_time else field.name, is_time))
    return found
