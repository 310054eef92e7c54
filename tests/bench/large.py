"""Fifty million readings: what single readings lose by them, and how long a day of minutes takes.

`AEMOS_BENCH_ROWS` sets another number. Loading them takes minutes; `make bench-large` only.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from aemos.v1 import data_stream_pb2, data_stream_pb2_grpc, identity_pb2, identity_pb2_grpc
from aemos_core.identity import Caller, set_caller
from aemos_core.rpc import open_channel
from aemos_core.times import now_ms, to_timestamp

from tests.bench import loads
from tests.bench.support import Installation, header, installation, median, quantile, table

ROWS = int(os.environ.get("AEMOS_BENCH_ROWS", "50000000"))
VARIABLES = 1_000
EVERY_MS = 30_000
DAY_MS = 86_400_000
A_DAY = DAY_MS // EVERY_MS
ROUNDS = 3
SECONDS = 30
ASKED = 100
_FIRST_ID = 10**12
"""Above all that ingest hands out while it is measured."""


def load(inst: Installation, rows: int) -> float:
    """Fills the demo's variables up to now, in order of the primary key, each with two days at least; rows a second."""
    sensors = [device["sensorUuid"] for device in inst.stack.demo["devices"]][: max(rows // (2 * A_DAY), 1)]
    each = rows // len(sensors)
    last_ms = now_ms() // EVERY_MS * EVERY_MS
    uuids = ", ".join(f"'{uuid}'" for uuid in sensors)
    variables = inst.sql(
        "SELECT v.id FROM aemos_ingest.telemetry_data v JOIN aemos_ingest.sensor s ON s.id = v.sensor_id "
        f"WHERE s.uuid IN ({uuids}) ORDER BY v.id"
    ).split()
    began = time.perf_counter()
    for number, variable in enumerate(variables):
        at = f"{last_ms} - ({each} - seq) * {EVERY_MS}"
        value = f"ROUND(15 + 5 * SIN(seq / 400) + RAND(seq + {number}), 2)"
        inst.sql(
            "INSERT INTO aemos_ingest.data_stream (telemetry_data_id, received_at_ms, id, value, number) "
            f"SELECT {variable}, {at}, {_FIRST_ID + number * each} + seq, v, v + 0e0 "
            f"FROM (SELECT seq, {value} AS v FROM aemos_ingest.seq_0_to_{each - 1}) AS made"
        )
    return rows / (time.perf_counter() - began)


async def _day_of_minutes(inst: Installation, variables: int) -> list[float]:
    """Milliseconds of each call for one day of averages a minute, each of another variable if there are as many."""
    login, devices = inst.stack.demo["login"], inst.stack.demo["devices"]
    secret = (inst.stack.var / "service-secret").read_text(encoding="ascii").strip()
    took = []
    async with open_channel(inst.stack.demo["grpc"]["ingest"], secret) as channel:
        tokens = await identity_pb2_grpc.IdentityServiceStub(channel).Login(identity_pb2.LoginRequest(**login))
        set_caller(Caller(0, 0, "admin", tokens.access_token))
        stub: Any = data_stream_pb2_grpc.DataStreamServiceStub(channel)
        to_ms = now_ms() // DAY_MS * DAY_MS
        for number in range(ASKED):
            request = data_stream_pb2.QueryReadingsRequest(
                sensor_uuid=[devices[number * 7 % min(variables, len(devices))]["sensorUuid"]],
                variable_name=["temperature"],
                to=to_timestamp(to_ms),
                aggregate=["avg"],
                interval="1m",
                **{"from": to_timestamp(to_ms - DAY_MS)},
            )
            began = time.perf_counter()
            answer = await stub.QueryReadings(request)
            took.append((time.perf_counter() - began) * 1_000)
            assert sum(interval.count for interval in answer.aggregates[0].intervals) >= A_DAY
    return took


def measure() -> str:
    """The page."""
    with installation(VARIABLES) as inst:
        before = [loads.http(inst, SECONDS) for _ in range(ROUNDS)]
        inst.seconds_behind()
        loaded = load(inst, ROWS)
        averages = asyncio.run(_day_of_minutes(inst, ROWS // (2 * A_DAY)))
        after = [loads.http(inst, SECONDS) for _ in range(ROUNDS)]
        behind = inst.seconds_behind()
    less = 1 - median(after) / median(before)
    minutes = f"{median(averages):.1f} ms (p99 {quantile(averages, 0.99):.1f})"
    rows = [
        ("one day of 1-minute averages of one variable, p50", minutes, "50 ms", "15 ms"),
        ("HTTP, single readings, before", f"{median(before):,.0f}/s", "", ""),
        ("the same on all these readings", f"{median(after):,.0f}/s, {-less:+.0%}", "15 % less", "5 % less"),
        ("rules behind at the end of it", f"{behind:.1f} s", "", ""),
        ("bulk load in order of the key", f"{loaded:,.0f} rows/s", "", ""),
    ]
    return "\n".join(
        [
            *header("large"),
            f"{ROWS:,} readings of at most {VARIABLES:,} variables, one each {EVERY_MS // 1_000} s; {ASKED} calls over gRPC, each "
            "of another variable; MariaDB with a buffer pool of 512 MB.",
            "",
            *table(("work", "AEMOS", "floor", "goal"), rows),
            "",
        ]
    )
