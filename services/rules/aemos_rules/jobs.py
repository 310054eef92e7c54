"""The jobs of judging: readings, and runs that go on at a deadline."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from typing import Any, TypeAlias
from zlib import crc32

import msgspec
from aemos.v1 import job_pb2
from aemos_core import telemetry
from aemos_core.times import now_ms

from aemos_rules.appliers import Parts
from aemos_rules.contexts import Asked, Contexts
from aemos_rules.deadlines import deadline_of
from aemos_rules.domain import Reading, VariableType
from aemos_rules.engine import CompiledChain, RunResult
from aemos_rules.memory import Fenced
from aemos_rules.nodes.actions import Delay
from aemos_rules.nodes.remembering import Absence, Held
from aemos_rules.nodes.windows import WindowMemory
from aemos_rules.run import Cell, Deadline, Remembered, Start, World
from aemos_rules.run_records import Ran

log = logging.getLogger("aemos.rules")

_Source: TypeAlias = tuple[int, int, str, int, str, int, str, VariableType]
Portion: TypeAlias = list[tuple[Reading, Sequence[CompiledChain]]]
MOST_RUNS = 2_000
"""What as many runs of a job say goes into one transaction: of more, a job makes several."""
MOST_OF_DEVICE = 250
"""Of one device: each change of one alarm takes statements of its own, and a transaction has four seconds."""
_TRIES = 3
_PATIENCE = 120
"""A deadline waits for readings that are stored but not judged yet; it looks so often, after 0.5 s at first and 5 s at
last: ten minutes in all."""
_AGAIN_MS, _MOST_AGAIN_MS = 500, 5_000
_AWAITING = msgspec.msgpack.Decoder(Absence.Memory | Delay.Memory | Held.Memory | WindowMemory)
"""What nodes with a deadline remember."""


def _json(reading: job_pb2.CommittedReading) -> object:
    try:
        return json.loads(reading.text, parse_int=_whole)
    except (ValueError, OverflowError):  # what ingest takes no more; one reading must not fail the job of a thousand
        return reading.text


def _whole(digits: str) -> float:
    """An int where MessagePack has one, as a deadline needs that keeps the reading."""
    number = int(digits)
    return number if -(2**63) <= number < 2**64 else float(number)


_VALUE_OF: Mapping[str, Callable[[job_pb2.CommittedReading], object]] = {
    "number": lambda reading: reading.number,
    "text": lambda reading: reading.text,
    "boolean": lambda reading: reading.text == "true",
    "json": _json,
}


class Judge:
    """A job may come twice or late: what it says counts once, by its place in event time and by its key."""

    def __init__(self, parts: Parts, contexts: Contexts, partitions: int) -> None:
        self._index, self._effects, self._memory = parts.index, parts.effects, parts.memory
        self._contexts = contexts
        self._partitions = partitions

    async def evaluate_readings(self, payload: bytes) -> None:
        """Runs every chain of every reading's sensor, in order, and applies what they say."""
        batch = job_pb2.ReadingBatch.FromString(payload)
        sensors = {source.sensor_uuid for source in batch.sources}
        judges = await self._index.judges_of(sensors)
        contexts = (reading.trace_context for reading in batch.readings)
        with telemetry.batch(telemetry.SPAN_JOB, contexts, len(batch.readings)):
            partition = crc32(batch.sources[0].device_uuid.encode()) % self._partitions if sensors else 0
            asking = judges.asking & sensors
            for portion in _portions(_readings(batch, judges.of), judges.of):
                if asking:
                    await self._judge(partition, _asked_by(partition, portion, asking), partial(_judged, portion))
                else:
                    await self._effects.apply(_judged(portion, World(now_ms(), partition)))

    async def resume_runs(self, payload: bytes) -> None:
        """Lets runs go on whose deadline has come; those of chains that are gone or disabled end."""
        deadlines = [deadline_of(run) for run in job_pb2.ResumedRuns.FromString(payload).runs]
        chains = await self._index.compiled({deadline.cell.chain_id for deadline in deadlines})
        due = [(chain, d) for d in deadlines if (chain := chains.get(d.cell.chain_id)) and chain.chain.enabled]
        first = (d.reading for chain, d in due if d.cell.node in chain.first and d.cell.node in chain.remembering)
        newest = await self._contexts.newest(reading for reading in first if reading)
        with telemetry.batch(telemetry.SPAN_JOB, (d.reading.trace_context for _, d in due if d.reading), len(due)):
            for partition in sorted({deadline.cell.partition for _, deadline in due}):
                own = [each for each in due if each[1].cell.partition == partition]
                asked = Asked()
                for chain, deadline in own:
                    asked.add(partition, chain, deadline.reading)
                await self._judge(partition, asked, partial(_resumed, own, newest))

    async def _judge(self, partition: int, asked: Asked, judge: Callable[[World], list[Any]]) -> None:
        """Judges with what is remembered and known, and again when another worker was faster."""
        for _ in range(_TRIES):
            try:
                memory = await self._memory.recall(partition, asked.cells)
                context = await self._contexts.fetch(asked)
                await self._effects.apply(judge(World(now_ms(), partition, memory, context)))
                return
            except BaseException as error:
                self._memory.forget(partition)
                if not isinstance(error, Fenced):
                    raise
        raise Fenced


class _Runs:
    """What the runs of one job say, in order, and what they remember in between."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._failures: Counter[str] = Counter()
        self.said: list[Any] = []

    def take(self, chain: CompiledChain, result: RunResult, start: Start) -> None:
        """One that said something, or failed."""
        if result.error:
            self._failures[
                f"chain {chain.chain.id}, node {result.node_index} {result.node_name!r}: {result.error}"
            ] += 1
        if not chain.remembering:
            self.said.append(Ran(chain, start, self._world, result))
            return
        self.said.append(Ran(chain, start, self._before(chain, start), result))
        for effect in result.effects:
            if type(effect) is Remembered:
                self._world.memory[effect.cell] = effect.value

    def _before(self, chain: CompiledChain, start: Start) -> World:
        """The world as the run found it: what it remembers goes on changing."""
        world = self._world
        if start.reading is None:
            return world
        key = str(start.reading.telemetry_data_id)
        cells = (Cell(world.partition, chain.chain.id, node, key) for node in chain.remembering)
        memory = {cell: value for cell in cells if (value := world.memory.get(cell))}
        return World(world.now_ms, world.partition, memory, world.context)

    def report(self) -> list[Any]:
        """Logs the failures; returns what was said."""
        for failure, count in self._failures.items():
            log.warning("%d runs failed: %s", count, failure)
        return self.said


def _portions(readings: Iterable[Reading], judges: Mapping[str, Sequence[CompiledChain]]) -> Iterator[Portion]:
    """What is to run, at most MOST_RUNS at a time: any number of chains may judge one reading."""
    portion: Portion = []
    room, of_devices = MOST_RUNS, dict[int, int]()
    for reading in readings:
        chains, device = judges[reading.sensor_uuid], reading.device_id
        of_device = of_devices.get(device, 0)
        while len(chains) > (fit := min(room, MOST_OF_DEVICE - of_device)):
            yield [*portion, (reading, chains[:fit])]
            chains, portion, room, of_devices, of_device = chains[fit:], [], MOST_RUNS, {}, 0
        if chains:
            portion.append((reading, chains))
            room -= len(chains)
            of_devices[device] = of_device + len(chains)
    yield portion


def _judged(portion: Portion, world: World) -> list[Any]:
    runs = _Runs(world)
    for reading, chains in portion:
        for chain in chains:
            result = _run(chain, reading, world) if reading.trace_context else chain.run(reading, 0, world)
            chain.activity.note(reading, result)
            if result.effects or result.error:
                runs.take(chain, result, Start(reading, depth=reading.depth))
    return runs.report()


def _resumed(
    due: Sequence[tuple[CompiledChain, Deadline]], newest: Mapping[int, tuple[int, int]], world: World
) -> list[Any]:
    runs = _Runs(world)
    for chain, deadline in due:
        if _is_overtaken(chain, deadline, newest, world):
            wait = min(_AGAIN_MS << deadline.tries, _MOST_AGAIN_MS)
            runs.said.append(deadline._replace(put_off_ms=world.now_ms + wait, tries=deadline.tries + 1))
            continue
        start = deadline.start
        result = chain.resume(start, world)
        chain.activity.note(start.reading, result)
        runs.take(chain, result, start)
    return runs.report()


def _is_overtaken(
    chain: CompiledChain, deadline: Deadline, newest: Mapping[int, tuple[int, int]], world: World
) -> bool:
    """Something newer is stored than the node has seen: until it is judged, nobody can say that nothing came, or that
    what held did not end. A backlog of ours is no silence of a device. A deadline that the node awaits no more only
    ends: put off, it would take the place of the one that is awaited."""
    cell, reading = deadline.cell, deadline.reading
    remembered = world.memory.get(cell)
    if remembered is None or reading is None or cell.node not in chain.first:
        return False
    try:
        awaited = _AWAITING.decode(remembered)
    except msgspec.ValidationError:  # of another node that had its name
        return False
    stored = newest.get(reading.telemetry_data_id, (0, 0))
    return awaited.due == deadline.due_ms and stored > (awaited.at, awaited.id) and deadline.tries < _PATIENCE


def _asked_by(partition: int, portion: Portion, sensors: Set[str]) -> Asked:
    asked = Asked()
    for reading, chains in portion:
        if reading.sensor_uuid in sensors:
            for chain in chains:
                if not chain.plain:
                    asked.add(partition, chain, reading)
    return asked


def _run(chain: CompiledChain, reading: Reading, world: World) -> RunResult:
    """A run of a sampled reading: what follows from it is a child of its span."""
    attributes: telemetry.Attributes = {"chain": chain.chain.id, "chain.name": chain.chain.name}
    with telemetry.child(telemetry.SPAN_RUN, reading.trace_context, attributes) as span:
        result = chain.run(reading._replace(trace_context=telemetry.carry(span)), 0, world)
        if span is not None:
            span.set_attributes({"outcome": result.outcome, "stopped_at": result.node_name, "error": result.error})
        return result


def _readings(batch: job_pb2.ReadingBatch, judges: Mapping[str, Sequence[CompiledChain]]) -> Iterator[Reading]:
    """Those that some chain judges."""
    sources = {one.telemetry_data_id: _source(one) if judges[one.sensor_uuid] else None for one in batch.sources}
    for one in batch.readings:
        if (source := sources[one.telemetry_data_id]) is not None:
            of, value_of = source
            yield Reading(one.id, *of, value_of(one), one.received_at_ms, one.trace_context, one.depth)


def _source(source: job_pb2.ReadingSource) -> tuple[_Source, Callable[[job_pb2.CommittedReading], object]]:
    """What each Reading of it says of it, in their order, and how its values are read."""
    variable_type: VariableType = source.variable_type  # type: ignore[assignment]
    return (
        source.organization_id,
        source.device_id,
        source.device_uuid,
        source.sensor_id,
        source.sensor_uuid,
        source.telemetry_data_id,
        source.variable_name,
        variable_type,
    ), _VALUE_OF[variable_type]
