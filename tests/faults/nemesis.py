"""Faults, and a seeded schedule of them."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from tests.faults.installation import Installation

SERVICES = ("aemos_ingest", "aemos_gateway", "aemos_rules worker", "aemos_rules", "aemos_notify worker")
Inflict = Callable[[Installation], AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """Something that begins, lasts, and ends."""

    name: str
    inflict: Inflict
    seconds: float
    after_s: float
    """How long the installation is left alone before."""


def signalled(process: str, number: signal.Signals) -> Inflict:
    """A process is killed or told to stop; `aemos up` starts it again."""

    @contextmanager
    def inflict(it: Installation) -> Iterator[None]:
        for pid in it.stack.pids(process)[:1]:
            os.kill(pid, number)
        yield

    return inflict


def frozen(pid_of: Callable[[Installation], int | None]) -> Inflict:
    """It takes connections and answers nothing."""

    @contextmanager
    def inflict(it: Installation) -> Iterator[None]:
        pid = pid_of(it)
        if pid is not None:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            if pid is not None:
                os.kill(pid, signal.SIGCONT)

    return inflict


def service(process: str) -> Callable[[Installation], int | None]:
    """Its pid; None while it is being started again."""
    return lambda it: next(iter(it.stack.pids(process)), None)


def during(begin: Callable[[Installation], None], end: Callable[[Installation], None]) -> Inflict:
    """Begins and ends."""

    @contextmanager
    def inflict(it: Installation) -> Iterator[None]:
        begin(it)
        try:
            yield
        finally:
            end(it)

    return inflict


def schedule(seed: str, faults: int, has_small_disk: bool) -> list[Fault]:
    """`faults` different ones, in an order and with times that the seed decides."""
    dice = random.Random(seed)
    kinds = [name for name in FAULTS if has_small_disk or name != "disk full"]
    return [Fault(name, FAULTS[name], dice.uniform(1, 8), dice.uniform(2, 4)) for name in dice.sample(kinds, faults)]


FAULTS: dict[str, Inflict] = {
    **{f"kill {process}": signalled(process, signal.SIGKILL) for process in SERVICES},
    **{f"stop {process}": signalled(process, signal.SIGTERM) for process in SERVICES[:3]},
    **{f"freeze {process}": frozen(service(process)) for process in SERVICES[:3]},
    "freeze mariadb": frozen(lambda it: it.mariadb.pid),
    "freeze redis": frozen(lambda it: it.redis.pid),
    "kill mariadb": during(lambda it: it.mariadb.kill(), lambda it: it.mariadb.start()),
    "kill redis": during(lambda it: it.redis.kill(), lambda it: it.redis.start()),
    "flush redis": during(lambda it: it.flush_redis(), lambda it: None),
    "cut mariadb": during(lambda it: it.to_mariadb.cut(), lambda it: it.to_mariadb.heal()),
    "cut redis": during(lambda it: it.to_redis.cut(), lambda it: it.to_redis.heal()),
    "black-hole mariadb": during(lambda it: it.to_mariadb.hold(), lambda it: it.to_mariadb.heal()),
    "black-hole redis": during(lambda it: it.to_redis.hold(), lambda it: it.to_redis.heal()),
    "disk full": during(lambda it: it.disk.fill(), lambda it: it.disk.empty()),
}
