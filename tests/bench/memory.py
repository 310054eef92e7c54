"""Whether memory stays flat: ten minutes of single readings over HTTP, as fast as they go.

`AEMOS_BENCH_MINUTES` sets another length; `make bench ONLY=memory` only.
"""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from tests.bench import loads
from tests.bench.support import NAMES, Installation, header, installation, table

MINUTES = int(os.environ.get("AEMOS_BENCH_MINUTES", "10"))
WARM_MINUTES = 2
DEVICES = 1_000
_SAMPLE_SECONDS = 5


def _samples(inst: Installation, minutes: float) -> list[tuple[float, dict[str, float]]]:
    """Resident MB of each process, with the minute it was read in."""
    began, found = time.monotonic(), []
    while (minute := (time.monotonic() - began) / 60) < minutes:
        found.append((minute, inst.memory()))
        time.sleep(_SAMPLE_SECONDS)
    return found


def measure() -> str:
    """The page."""
    with installation(DEVICES) as inst, ThreadPoolExecutor(1) as pool:
        loading = pool.submit(loads.http, inst, (WARM_MINUTES + MINUTES) * 60)
        time.sleep(WARM_MINUTES * 60)
        samples = _samples(inst, MINUTES - 0.1)
        rate, behind = loading.result(), inst.seconds_behind()
    minutes = [minute for minute, _ in samples]
    rows = []
    for name in NAMES:
        values = [memory[name] for _, memory in samples]
        slope = statistics.linear_regression(minutes, values).slope
        floor = "1" if name in ("aemos_gateway", "aemos_ingest") else ""
        rows.append((name, f"{values[0]:.1f}", f"{values[-1]:.1f}", f"{slope:+.2f}", floor))
    return "\n".join(
        [
            *header("memory"),
            f"{MINUTES} minutes after {WARM_MINUTES} to get warm, {rate:,.0f} acknowledged readings/s over HTTP from {DEVICES:,} "
            f"devices; rules {behind:.1f} s behind at the end. The slope is that of least squares over all samples.",
            "",
            *table(("process", "MB at first", "MB at last", "MB a minute", "floor"), rows),
            "",
        ]
    )
