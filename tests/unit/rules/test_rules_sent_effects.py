"""What runs derive, as rows of the outbox."""

from itertools import pairwise

from aemos.v1 import data_stream_pb2
from aemos_core.outbox_lane import MOST_IN_BATCH
from aemos_rules.domain import DerivedReading
from aemos_rules.sent_effects import derived_readings


def test_a_row_is_no_more_than_one_call_takes() -> None:
    """Small ones by their number, large ones by their size; all are there, in order."""
    values = ["1"] * (2 * MOST_IN_BATCH) + ['"' + "x" * 60_000 + '"'] * 50
    derived = [DerivedReading(str(n), 1, "s", "v", value, n, 1, None) for n, value in enumerate(values)]
    rows = derived_readings(derived, {})
    assert all(row.weight <= MOST_IN_BATCH for row in rows)
    assert all(one.weight + two.weight > MOST_IN_BATCH for one, two in pairwise(rows))
    assert max(len(row.payload) for row in rows) < 2_000_000
    parsed = [data_stream_pb2.WriteReadingsRequest.FromString(row.payload).readings for row in rows]
    assert [one.received_at_ms for readings in parsed for one in readings] == list(range(len(values)))
