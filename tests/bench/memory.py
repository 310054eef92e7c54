"""Memory under a steady load: how much each process grows a minute. AEMOS_BENCH_MINUTES says how long, ten otherwise."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from statistics import linear_regression

from tests.bench import loads
from tests.bench.support import NAMES, Installation, header, installation, table

DEVICES = 1_000
WARM_SECONDS = 120
_SAMPLE_SECONDS = 5.0
_HTTP_PAUSE_MS = 300
_MQTT_PAUSE_SECONDS = 2.0
_FLOORS = {"aemos_gateway": "1.0", "aemos_ingest": "1.0"}
Samples = list[tuple[float, dict[str, float]]]
"""(seconds since the load began, MB by process)."""


def _minutes() -> float:
    minutes = float(os.environ.get("AEMOS_BENCH_MINUTES", "10"))
    assert minutes * 60 > WARM_SECONDS + 2 * _SAMPLE_SECONDS, "the warm-up alone takes two minutes"
    return minutes


def _sampled(inst: Installation, sending: Sequence[Future[float]]) -> Samples:
    began, samples = time.monotonic(), []
    while not any(load.done() for load in sending):
        samples.append((time.monotonic() - began, inst.own_memory()))
        time.sleep(_SAMPLE_SECONDS)
    return samples


def _run(inst: Installation, seconds: int) -> tuple[Samples, list[float]]:
    """What was sampled, and readings a second over HTTP and over MQTT."""
    with ThreadPoolExecutor(2) as threads:
        sending = [
            threads.submit(loads.http, inst, seconds, pause_ms=_HTTP_PAUSE_MS),
            threads.submit(lambda: asyncio.run(loads.mqtt(inst, seconds, _MQTT_PAUSE_SECONDS))),
        ]
        return _sampled(inst, sending), [load.result() for load in sending]


def _row(name: str, samples: Samples) -> tuple[str, ...]:
    """Name, MB after the warm-up and at the end, MB a minute by least squares, floor."""
    warm = [(at / 60, megabytes[name]) for at, megabytes in samples if at >= WARM_SECONDS]
    minutes, megabytes = zip(*warm, strict=True)
    slope = linear_regression(minutes, megabytes).slope
    return name, f"{megabytes[0]:.1f}", f"{megabytes[-1]:.1f}", f"{slope:+.2f}", _FLOORS.get(name, "-")


def measure() -> str:
    """The page."""
    minutes = _minutes()
    with installation(DEVICES) as inst:
        samples, (http, mqtt) = _run(inst, int(minutes * 60))
    rows = [_row(name, samples) for name in NAMES]
    return "\n".join(
        [
            *header("memory"),
            f"{minutes:g} minutes of {http:,.0f} readings a second over HTTP and {mqtt:,.0f} over MQTT from {DEVICES:,} "
            f"devices with two chains each, on MariaDB; sampled every {_SAMPLE_SECONDS:g} s (PSS), the first "
            f"{WARM_SECONDS} s left out.",
            "",
            *table(("process", "MB after the warm-up", "at the end", "MB a minute", "floor"), rows),
            "",
        ]
    )
