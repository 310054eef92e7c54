"""`python -m tests.bench [family ...]`: measures, and writes docs/measured/bench-<family>.md.

A family is a module here with `measure() -> str`, the page's Markdown. `memory` and `large` take long, and are measured
only when they are named.
"""

from __future__ import annotations

import importlib
import sys

from tests.bench.support import ROOT

FAMILIES = ("ingest", "rules", "scheduler", "notify")


def main(families: list[str]) -> None:
    """Measures these families, or all."""
    for family in families or FAMILIES:
        text = importlib.import_module(f"tests.bench.{family}").measure()
        (ROOT / f"docs/measured/bench-{family}.md").write_text(text, encoding="utf-8")
        print(text, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
