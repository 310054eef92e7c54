"""Readings: acknowledged a second, what each costs, and how far behind the rules are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench import loads
from tests.bench.latency import latency
from tests.bench.support import NAMES, Installation, header, installation, median, table, yardstick

DEVICES = 1_000
MANY_DEVICES = 10_000
ROUNDS = 3
HTTP_SECONDS = 30
SECONDS = 10


@dataclass(frozen=True, slots=True)
class Load:
    """What one round gave: readings a second, seconds the rules were behind, microseconds of CPU a reading, the share of
    the readings that changed a state, and how slow the machine was before and after it (see `yardstick`)."""

    rate: float
    behind: float
    us: dict[str, float]
    changing: float
    slowness: float


def _load(inst: Installation, seconds: float, send: Callable[[], float]) -> Load:
    slowness = yardstick()
    before, changes = inst.cpu(), _changes(inst)
    rate = send()
    behind = inst.seconds_behind()
    after, readings = inst.cpu(), rate * seconds
    us = {name: (after[name] - before[name]) / readings * 1e6 for name in after}
    return Load(rate, behind, us, (_changes(inst) - changes) / readings, (slowness + yardstick()) / 2)


def _changes(inst: Installation) -> int:
    """Changes of device states so far."""
    return int(inst.sql("SELECT COUNT(*) FROM aemos_rules.device_state_instance"))


def single(inst: Installation, seconds: int = HTTP_SECONDS, devices: int | None = None) -> Load:
    """A round of single readings over HTTP, of the first devices or of all."""
    return _load(inst, seconds, lambda: loads.http(inst, seconds, devices=devices))


def _rates(rounds: list[Load]) -> str:
    return f"{median([r.rate for r in rounds]):,.0f}/s ({', '.join(f'{r.rate:,.0f}' for r in rounds)})"


def _ours(rounds: list[Load]) -> float:
    return median([sum(r.us[name] for name in NAMES) for r in rounds])


def _ms(rounds: list[dict[str, float]], key: str) -> str:
    return f"{median([one[key] for one in rounds]):.1f}"


@dataclass(frozen=True, slots=True)
class Measured:
    """Every round of every load."""

    idle: list[dict[str, float]]
    single: list[Load]
    batches: list[Load]
    mqtt: list[Load]
    coap: list[Load]
    few: list[Load]
    cold: Load
    many: list[Load]
    memory: dict[str, float]

    def rows(self) -> list[tuple[str, ...]]:
        """Work, figure, floor, goal, the same design in plain Node.js."""
        change = median([many.rate / few.rate for few, many in zip(self.few, self.many, strict=True)]) - 1
        against = f"{abs(change):.0%} {'more' if change > 0 else 'less'} than {DEVICES:,} of them"
        behind = f"{max(r.behind for r in self.single):.1f} s at most"
        post = f"{_ms(self.idle, 'post_p50')} ms ({_ms(self.idle, 'post_p99')})"
        event = f"{_ms(self.idle, 'event_p50')} / {_ms(self.idle, 'event_p99')} ms"
        http = f"HTTP, single readings, {loads.CONNECTIONS} connections, {HTTP_SECONDS} s"
        us = "CPU of our processes per such reading, rules included"
        return [
            ("one client, POST -> 201, p50 (p99)", post, "5 ms", "3 ms", "3.5 ms"),
            ("POST -> Socket.IO event, p50 / p99", event, "10 / 25 ms", "6 / 12 ms", "12.8 / 20.4 ms"),
            (http, _rates(self.single), "7,000/s", "10,000/s", "916/s, 272/s with rules"),
            ("rules behind at the end of it", behind, "2 s", "2 s", "-"),
            (us, f"{_ours(self.single):.0f} us", "200 us", "150 us", "6,200 us"),
            ("HTTP, batches of 100", _rates(self.batches), "30,000/s", "60,000/s", "-"),
            ("MQTT QoS 1, 100 connections, 20 in flight", _rates(self.mqtt), "10,000/s", "30,000/s", "845/s stored"),
            ("CoAP confirmable, 100 clients", _rates(self.coap), "2,000/s", "8,000/s", "-"),
            (f"single readings, {MANY_DEVICES:,} devices", f"{_rates(self.many)}, {against}", "15 %", "5 %", "-"),
        ]

    def processes(self) -> list[tuple[str, ...]]:
        """CPU a reading of each process under each load, and its memory."""
        columns = (self.single, self.batches, self.mqtt, self.coap)
        return [
            (name, *(f"{median([r.us[name] for r in rounds]):.0f} us" for rounds in columns), f"{megabytes:.0f} MB")
            for name, megabytes in self.memory.items()
        ]


def _measured() -> Measured:
    with installation(DEVICES) as inst:
        idle = [asyncio.run(latency(inst.stack)) for _ in range(ROUNDS)]
        singles = [single(inst) for _ in range(ROUNDS)]
        memory = inst.memory()
        batches = [_load(inst, SECONDS, lambda: loads.http(inst, SECONDS, batch=100)) for _ in range(ROUNDS)]
        mqtt = [_load(inst, SECONDS + 1, lambda: asyncio.run(loads.mqtt(inst, SECONDS))) for _ in range(ROUNDS)]
        coap = [_load(inst, SECONDS + 1, lambda: asyncio.run(loads.coap(inst, SECONDS))) for _ in range(ROUNDS)]
    with installation(MANY_DEVICES) as inst:
        cold = _load(inst, SECONDS, lambda: loads.http(inst, SECONDS))  # every device's first reading: not in the pairs
        # In pairs, for the machine may change its speed meanwhile.
        pairs = [(single(inst, devices=DEVICES), single(inst)) for _ in range(ROUNDS)]
    few, many = ([pair[at] for pair in pairs] for at in (0, 1))
    return Measured(idle, singles, batches, mqtt, coap, few, cold, many, memory)


def measure() -> str:
    """The page."""
    done = _measured()
    behind = [max(r.behind for r in rounds) for rounds in (done.batches, done.mqtt, done.coap)]
    changing = [median([r.changing for r in rounds]) for rounds in (done.single, done.batches, done.mqtt, done.coap)]
    all_rounds = (done.single, done.batches, done.mqtt, done.coap, done.few, done.many)
    slowness = " | ".join(", ".join(f"{r.slowness:.2f}" for r in rounds) for rounds in all_rounds)
    return "\n".join(
        [
            *header("ingest"),
            f"Medians of {ROUNDS} rounds. MariaDB (`innodb_flush_log_at_trx_commit=1`), Redis (append-only, everysec), "
            f"all services, one rule worker and the load generator share the cores. {DEVICES:,} devices with two chains "
            "each, one reading in a hundred changes a state; limits and tracing at their defaults. Acknowledged means "
            "stored.",
            "",
            *table(("work", "AEMOS", "floor", "goal", "the same design in plain Node.js"), done.rows()),
            "",
            f"Rules behind: {behind[0]:.1f} s after batches, {behind[1]:.1f} s after MQTT, {behind[2]:.1f} s after CoAP. "
            f"Readings that changed a state: {', '.join(f'{share:.2%}' for share in changing)} (in the order below). "
            f"Of {MANY_DEVICES:,} devices {DEVICES:,} and all send in turns: {_rates(done.few)} and {_rates(done.many)}; "
            f"{_ours(done.few):.0f} and {_ours(done.many):.0f} us a reading. Before that, the first {SECONDS} s of all of "
            f"them, when each device and its chains are read from the database: {done.cold.rate:,.0f}/s.",
            "",
            *table(("process", "single", "batches", "MQTT", "CoAP", "memory after single readings"), done.processes()),
            "",
            "The machine's neighbours slow it: ten million additions in Python, on both cores at once, took so many "
            "seconds around each round (0.47 at its best), for single | batches | MQTT | CoAP | 1,000 of 10,000 devices "
            f"| 10,000 devices: {slowness}.",
            "",
        ]
    )
