"""`python -m tests.bench.pairs TREE [ROUNDS]`: this tree and another one (a git worktree) in turns, on one machine.

On a machine that others slow, figures of two days say nothing of the code between them; those of two installations that
take turns do. Single readings over HTTP, each tree with its own ingest.lua; writes docs/measured/pairs.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.bench import loads
from tests.bench.ingest import DEVICES, single
from tests.bench.support import NAMES, ROOT, header, installation, median, table

_SECONDS = 15
_PARTS = ("libs/aemos_core", "libs/aemos_proto", "libs/aemos_client")
_SERVICES = ("gateway", "ingest", "rules", "scheduler", "notify")


def _arm(tree: Path) -> None:
    """An installation of a tree's code; a line on stdin is a round, whose figures are a line of JSON on stdout."""
    os.environ["PYTHONPATH"] = ":".join(str(tree / part) for part in (*_PARTS, *(f"services/{s}" for s in _SERVICES)))
    loads.ROOT = tree
    with installation(DEVICES) as inst:
        print("ready", flush=True)
        for _ in sys.stdin:
            done = single(inst, _SECONDS)
            ours = sum(done.us[name] for name in NAMES)
            others = sum(done.us.values()) - ours
            figures = {"rate": done.rate, "ours": ours, "others": others, "changing": done.changing}
            print(json.dumps(figures | {"slowness": done.slowness}), flush=True)


def _started(tree: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.bench.pairs", "--arm", str(tree)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline().strip() == "ready"
    return process


def _round(arm: subprocess.Popen[str]) -> dict[str, Any]:
    assert arm.stdin
    assert arm.stdout
    arm.stdin.write("round\n")
    arm.stdin.flush()
    figures: dict[str, Any] = json.loads(arm.stdout.readline())
    return figures


def _pairs(tree: Path, rounds: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Figures of the other tree and of this one, by round; which begins changes. The first warms, and is left out."""
    with ExitStack() as stack:
        other, this = (stack.enter_context(_started(root)) for root in (tree, ROOT))
        pairs = []
        for number in range(rounds + 1):
            first, second = (this, other) if number % 2 else (other, this)
            figures = {arm: _round(arm) for arm in (first, second)}
            pairs.append((figures[other], figures[this]))
        for arm in (other, this):
            assert arm.stdin
            arm.stdin.close()
    return pairs[1:]


def _commit(tree: Path) -> str:
    command = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def page(tree: Path, rounds: int) -> str:
    """The page's Markdown."""
    pairs, names = _pairs(tree, rounds), (_commit(tree), _commit(ROOT))
    rows = [
        (
            names[which],
            f"{median([p[which]['rate'] for p in pairs]):,.0f}/s",
            f"{median([p[which]['ours'] for p in pairs]):.0f} us",
            f"{median([p[which]['others'] for p in pairs]):.0f} us",
            f"{median([p[which]['changing'] for p in pairs]):.2%}",
            ", ".join(f"{p[which]['ours']:.0f}" for p in pairs),
            ", ".join(f"{p[which]['slowness']:.2f}" for p in pairs),
        )
        for which in (0, 1)
    ]
    columns = ("tree", "readings/s", "CPU, ours", "MariaDB, Redis", "changed a state", "ours, by round", "slowness")
    ratio = median([this["ours"] / other["ours"] for other, this in pairs]) - 1
    return "\n".join(
        [
            "# Measured by `python -m tests.bench.pairs`",
            *header("")[1:],
            f"Two installations on one machine, {rounds} rounds of {_SECONDS} s in turns: single readings over HTTP, "
            f"{DEVICES:,} devices, each with the load of its own tree; CPU is of a reading, slowness as in "
            f"bench-ingest.md. Of two rounds in turn the second tree took {ratio:+.0%} of the first one's CPU (median).",
            "",
            *table(columns, rows),
            "",
        ]
    )


if __name__ == "__main__":
    if sys.argv[1] == "--arm":
        _arm(Path(sys.argv[2]))
    else:
        written = page(Path(sys.argv[1]).resolve(), int((sys.argv[2:] or ["6"])[0]))
        (ROOT / "docs/measured/pairs.md").write_text(written, encoding="utf-8")
        print(written)
