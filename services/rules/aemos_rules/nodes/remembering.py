"""Filters that remember, one value for each variable that reaches them. Late and repeated readings change nothing:
each memory has the place in event time, (ms, reading id), of the newest reading that it has seen."""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeAlias

import msgspec
from msgspec import Meta

from ..conditions import ByType
from ..domain import InvalidChain, Reading
from ..run import Run
from .filters import OfSensor
from .registry import Cel, Filter, Number, Seconds, Text, VariableTypes

MAX_TIMES = 1_000
Times: TypeAlias = Annotated[int, Meta(ge=2, le=MAX_TIMES, description=f"a whole number from 2 to {MAX_TIMES}")]
Positive: TypeAlias = Annotated[float, Meta(gt=0, le=1e300, description="a number above 0")]


class OfNumber(OfSensor):
    """`field` is a value of the transforms before; the reading's own when absent."""

    field: Text = ""


class Memory(msgspec.Struct, array_like=True):
    """`at` and `id` are the newest reading seen; 0 before the first."""

    at: int = 0
    id: int = 0


def is_awaited(due: int, run: Run, ms: int) -> bool:
    """A deadline that is yet to come, and within so long: none that was lost with a run that failed or a chain that was
    off, and none of a longer time that was configured before."""
    return run.world.now_ms < due <= run.world.now_ms + ms


class Remembering(OfSensor, Filter):
    """A filter whose outcome depends on what came before, in event time."""

    remembers = True
    Memory: ClassVar[type[Memory]] = Memory

    def apply(self, run: Run) -> bool | None:
        if not self._concerns(run.reading):
            return None
        memory = run.recall(self.name, self.Memory) or self.Memory()
        if run.deadline_ms:
            return self._due(run, memory)
        if run.mark <= (memory.at, memory.id):
            return None
        memory.at, memory.id = run.mark
        outcome = self._judge(run, memory)
        run.remember(self.name, memory)
        return outcome

    def _judge(self, run: Run, memory: Any) -> bool | None:
        """The outcome of a reading newer than all before; changes `memory`."""
        raise NotImplementedError

    def _due(self, run: Run, memory: Any) -> bool | None:
        """The outcome of a deadline that has come; None when it is not the one that the memory names."""
        return None

    def values(self, run: Run) -> Mapping[str, Any]:
        memory = run.recall(self.name, self.Memory) or self.Memory()
        return {"value": run.reading and run.reading.value, **msgspec.structs.asdict(memory)}


class Change(OfNumber, Remembering, kind="change"):
    """True when a number differs by an amount, or by percent, from the one that was true last; the first is false."""

    amount: Positive | None = None
    percent: Positive | None = None

    class Memory(Memory, tag="change"):
        base: float | None = None

    def compile(self, types: VariableTypes) -> None:
        super().compile(types)
        if (self.amount is None) == (self.percent is None):
            raise InvalidChain([("amount", "either amount or percent must be given")])

    def _judge(self, run: Run, memory: Any) -> bool | None:
        value, base = run.number(self.field), memory.base
        if base is None:
            memory.base = value
            return False
        least = self.amount if self.amount is not None else abs(base) * (self.percent or 0) / 100
        if abs(value - base) < least or value == base:
            return False
        memory.base = value
        return True


class Hysteresis(OfNumber, Remembering, kind="hysteresis"):
    """True from when a number reaches the level `raise` until it reaches `clear`, which lies on the other side."""

    raise_: Number = msgspec.field(name="raise")
    clear: Number

    class Memory(Memory, tag="hysteresis"):
        raised: bool = False

    def compile(self, types: VariableTypes) -> None:
        super().compile(types)
        if self.raise_ == self.clear:
            raise InvalidChain([("clear", "must differ from raise")])

    def _judge(self, run: Run, memory: Any) -> bool | None:
        value = run.number(self.field)
        upwards = self.raise_ > self.clear
        if value >= self.raise_ if upwards else value <= self.raise_:
            memory.raised = True
        elif value <= self.clear if upwards else value >= self.clear:
            memory.raised = False
        return bool(memory.raised)


class OverTime(Remembering):
    """Looks at a stretch of event time."""

    seconds: Seconds

    def compile(self, types: VariableTypes) -> None:
        super().compile(types)
        self._ms = int(self.seconds * 1000)


class Conditional(Remembering):
    """As OverTime, with a condition if there is one."""

    condition: Cel = ""
    seconds: Seconds

    def compile(self, types: VariableTypes) -> None:
        super().compile(types)
        self._ms = int(self.seconds * 1000)
        self._conditions: ByType | None = None
        if self.condition:
            self._conditions = self.expression("condition", self.condition, self._candidates(types))

    def _concerns(self, reading: Reading | None) -> bool:
        """Not those of a type that the condition makes no sense for."""
        if reading is None or not super()._concerns(reading):
            return False
        return self._conditions is None or self._conditions[reading.variable_type] is not None

    def _holds(self, run: Run) -> bool:
        condition = None if self._conditions is None else self._conditions.on(run)
        return condition is None or condition.holds(run)


class Held(Conditional, kind="held"):
    """True once the condition has held for so long, with or without another reading; false when it does not hold;
    no outcome in between."""

    condition: Cel

    class Memory(Memory, tag="held"):
        since: int = 0
        due: int = 0
        reached: int = 0

    def _judge(self, run: Run, memory: Any) -> bool | None:
        holds = self._holds(run)
        if holds and not memory.since:
            memory.since = memory.at
        left = memory.since + self._ms - memory.at
        if holds and left > 0:
            if not is_awaited(memory.due, run, self._ms):
                memory.due, memory.reached = run.arm(self.name, left), memory.since + self._ms
            return None
        if memory.due:
            run.disarm(self.name)
            memory.due = 0
        if not holds:
            memory.since = 0
        return holds

    def _due(self, run: Run, memory: Any) -> bool | None:
        if run.deadline_ms != memory.due:
            return None
        over = memory.since + self._ms
        if 0 < memory.reached < over:  # it has been told meanwhile to hold for longer
            memory.due, memory.reached = run.arm(self.name, over - memory.reached), over
            run.remember(self.name, memory)
            return None
        memory.due, run.at_ms = 0, over
        run.remember(self.name, memory)
        return True


class Absence(OverTime, kind="absence"):
    """True when nothing came for so long; false at each reading."""

    class Memory(Memory, tag="absence"):
        seen: int = 0
        due: int = 0

    def _judge(self, run: Run, memory: Any) -> bool | None:
        # A deadline that is armed stays: when it comes, it is put off to where it belongs. That spares each reading
        # the writing of a deadline.
        memory.seen = run.world.now_ms
        if not is_awaited(memory.due, run, self._ms):
            memory.due = run.arm(self.name, self._ms)
        return False

    def _due(self, run: Run, memory: Any) -> bool | None:
        if run.deadline_ms != memory.due:
            return None
        left = memory.seen + self._ms - run.deadline_ms
        if left > 0:
            memory.due = run.arm(self.name, memory.seen + self._ms - run.world.now_ms)
            run.remember(self.name, memory)
            return None
        memory.due, run.at_ms = 0, memory.at + self._ms
        run.remember(self.name, memory)
        return True


class Repeated(Conditional, kind="repeated"):
    """True when this is at least the n-th reading (that satisfies the condition, if there is one) within so long."""

    times: Times

    class Memory(Memory, tag="repeated"):
        marks: list[tuple[int, int]] = []

    def apply(self, run: Run) -> bool | None:
        """A reading between others counts once, in its place; the newest `times` are remembered."""
        if not self._concerns(run.reading):
            return None
        if not self._holds(run):
            return False
        memory: Any = run.recall(self.name, self.Memory) or self.Memory()
        marks, mark = memory.marks, run.mark
        if mark in marks or (len(marks) == self.times and mark < marks[0]):
            return None
        insort(marks, mark)
        del marks[: -self.times]
        run.remember(self.name, memory)
        place = marks.index(mark)
        first = place + 1 - self.times
        return first >= 0 and bool(mark[0] - marks[first][0] <= self._ms)


class Throttle(OverTime, kind="throttle"):
    """True at most once in so long; false for readings that come too soon."""

    class Memory(Memory, tag="throttle"):
        pass

    def apply(self, run: Run) -> bool | None:
        if not self._concerns(run.reading):
            return None
        memory = run.recall(self.name, self.Memory) or self.Memory()
        mark = run.mark
        if mark <= (memory.at, memory.id):
            return None
        if memory.at and mark[0] - memory.at < self._ms:
            return False
        memory.at, memory.id = mark
        run.remember(self.name, memory)
        return True
