"""docs/chains.md names what there is."""

from __future__ import annotations

import re
from pathlib import Path

from aemos_rules.conditions import _CONTEXT
from aemos_rules.nodes import KINDS

PAGE = (Path(__file__).parents[3] / "docs/chains.md").read_text(encoding="utf-8")


def first_cells(begin: str, end: str) -> set[str]:
    """The names in the first column of the table between two lines."""
    part = PAGE[PAGE.index(begin) : PAGE.index(end)]
    cells = re.findall(r"^\| (`.*?) \|", part, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_kinds_on_the_page_exist() -> None:
    """node-types is complete; the page is what people read."""
    named = first_cells("| kind |", "## Expressions")
    assert len(named) > 20
    assert named <= {kind for _, kind in KINDS}


def test_every_name_of_expressions_is_on_the_page() -> None:
    """And no other."""
    assert first_cells("| name |", "## Time") == {"value", "previous", *_CONTEXT}
