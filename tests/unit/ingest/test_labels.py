"""Labels and attributes: what is kept of what is given, and which devices a filter finds."""

from __future__ import annotations

import pytest
from aemos_core.errors import AemosError, Kind
from aemos_ingest.labels import (
    MOST_ATTRIBUTES_BYTES,
    MOST_LABELS,
    labels_of,
    merged_labels,
    part_of_labels,
    stored_attributes,
)


def test_labels_are_set_one_by_one() -> None:
    """What is not named stays, and an empty value removes."""
    stored = merged_labels(None, {"site": "north", "floor": "3"})
    assert labels_of(merged_labels(stored, {"floor": "", "rack": "ä b"})) == {"site": "north", "rack": "ä b"}
    assert labels_of(None) == {}


@pytest.mark.parametrize(
    ("changes", "loc"),
    [
        ({"": "x"}, "labels."),
        ({"a b": "x"}, "labels.a b"),
        ({"k" * 64: "x"}, f"labels.{'k' * 64}"),
        ({"k": "x" * 201}, "labels.k"),
        ({f"k{n}": "x" for n in range(MOST_LABELS + 1)}, "labels"),
    ],
)
def test_a_label_out_of_bounds_is_refused(changes: dict[str, str], loc: str) -> None:
    """INVALID, with the label's place."""
    with pytest.raises(AemosError) as refused:
        merged_labels(None, changes)
    assert (refused.value.kind, refused.value.errors[0].loc) == (Kind.INVALID, loc)


@pytest.mark.parametrize("value", ["north", 'a"b', "a\\", "=", "ä🌡️", '","site":"north'])
def test_a_filter_finds_its_label_only(value: str) -> None:
    """Whatever the value is made of, and whatever other labels contain."""
    needle = part_of_labels(f"site={value}")
    assert needle in merged_labels(None, {"a": "1", "site": value, "z": "2"})
    others = [{"site": value + "x"}, {"site": "x" + value}, {"xsite": value}, {"note": f'"site":"{value}"'}]
    assert not [other for other in others if needle in merged_labels(None, other)]


@pytest.mark.parametrize("label", ["", "site", "site=", "=north", 'si"te=x'])
def test_a_filter_that_names_no_label_is_refused(label: str) -> None:
    """INVALID names the parameter."""
    with pytest.raises(AemosError) as refused:
        part_of_labels(label)
    assert refused.value.errors[0].loc == "label"


def test_attributes_have_at_most_16_kib() -> None:
    """In bytes of their JSON."""
    fits = MOST_ATTRIBUTES_BYTES - len('{"a":""}')
    assert stored_attributes({"a": "x" * fits})
    with pytest.raises(AemosError):
        stored_attributes({"a": "x" * (fits + 1)})
