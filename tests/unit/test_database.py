"""Statements that set many rows: right for each row, and few to keep."""

from aemos_core.database import by_id
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, insert, select, update

ROWS = Table("thing", MetaData(), Column("id", Integer, primary_key=True), Column("value", Integer))


def test_each_row_gets_its_value() -> None:
    """Of five rows each has the value that stands beside its id."""
    values = {number: number * 10 for number in range(5)}
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        ROWS.metadata.create_all(connection)
        connection.execute(insert(ROWS), [{"id": number} for number in values])
        connection.execute(update(ROWS).values(value=by_id(values, ROWS.c.id)))
        assert {row.id: row.value for row in connection.execute(select(ROWS))} == values


def test_few_statements_for_any_number_of_rows() -> None:
    """A thousand batches, each of another length, are eleven statements: a service that runs for days keeps no more."""
    statements = {str(by_id(dict.fromkeys(range(length), 0), ROWS.c.id).compile()) for length in range(1, 1_001)}
    assert len(statements) == 11
