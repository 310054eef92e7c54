"""`aemos trace`: a trace's waterfall from the span files, with the traces that are linked to it."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

Span = dict[str, Any]
_WIDTH = 40


def load(directory: Path) -> list[Span]:
    """Every span in the files of a directory, oldest first."""
    spans = []
    for path in sorted(directory.glob("*.jsonl*")):
        with path.open(encoding="utf-8") as lines:
            spans += [json.loads(line) for line in lines if line.endswith("\n")]
    return sorted(spans, key=lambda span: span["start_ns"])


def gather(spans: list[Span], trace_id: str) -> list[list[Span]]:
    """The spans of the trace, then of each trace that links to it."""
    linked = {span["trace"] for span in spans if trace_id in span["links"]}
    return [[span for span in spans if span["trace"] == one] for one in (trace_id, *sorted(linked - {trace_id}))]


def render(groups: list[list[Span]]) -> str:
    """A waterfall: for each span its place in time, its duration in ms, its service and name."""
    every = [span for group in groups for span in group]
    start, end = min(s["start_ns"] for s in every), max(s["end_ns"] for s in every)
    scale = _WIDTH / max(end - start, 1)
    lines = []
    for index, group in enumerate(groups):
        if index and group:
            lines.append(f"linked trace {group[0]['trace']}")
        lines += _tree(group, start, scale)
    return "\n".join(lines)


def _tree(group: list[Span], start: int, scale: float) -> list[str]:
    children = defaultdict(list)
    known = {span["span"] for span in group}
    for span in group:
        children[span["parent"] if span["parent"] in known else ""].append(span)
    lines: list[str] = []

    def walk(parent: str, depth: int) -> None:
        for span in children[parent]:
            lines.append(_line(span, depth, start, scale))
            walk(span["span"], depth + 1)

    walk("", 0)
    return lines


def _line(span: Span, depth: int, start: int, scale: float) -> str:
    before = int((span["start_ns"] - start) * scale)
    length = max(1, int((span["end_ns"] - span["start_ns"]) * scale))
    bar = (" " * before + "█" * length)[: _WIDTH + 1].ljust(_WIDTH + 1)
    took = (span["end_ns"] - span["start_ns"]) / 1e6
    error = f"  ERROR {span['error']}" if span["error"] else ""
    return f"{bar} {took:9.2f} ms  {'  ' * depth}{span['service']}: {span['name']}{error}"


def show(trace_id: str, directory: Path) -> int:
    """Prints the waterfall; 1 when there is no such trace."""
    groups = gather(load(directory), trace_id)
    if not groups[0]:
        print(f"no span of trace {trace_id} in {directory}: it was not sampled, or it is too old", file=sys.stderr)
        return 1
    print(render(groups))
    return 0
