"""Facts about nodes of scheduled chains: they act on a schedule only, and what they ask for is known before the run."""

from typing import Any

import pytest
from aemos.v1 import job_pb2
from aemos_rules import scheduled_runs
from aemos_rules.domain import InvalidChain, Node, Question, ReportWanted, Selection
from aemos_rules.engine import RunResult
from aemos_rules.run import Deadline, World
from aemos_rules.run_records import Ran

from tests.support.play import T0, chain, reading

REPORT = Node("action", "make", {"action": "generateReport", "title": "Daily", "period": "yesterday"})
READ = Node("transform", "read", {"action": "readSensors", "label": "room=cellar", "name": "cellar"})
QUESTION = Question(Selection(label="room=cellar"), "")


def on_data(condition: str) -> Node:
    return Node("filter", "decide", {"kind": "data", "condition": condition})


def wanted(result: RunResult) -> list[ReportWanted]:
    return [effect for effect in result.effects if isinstance(effect, ReportWanted)]


def test_a_report_is_asked_for_once_for_an_instant() -> None:
    """The key is of the chain, the node and the instant; a reading makes none."""
    reporting = chain(REPORT)
    (first,), (again,), (later,) = (wanted(reporting.run(None, at)) for at in (T0, T0, T0 + 1_000))
    assert first == again
    assert first.key != later.key
    assert len(first.key) <= 64
    assert (first.organization_id, first.rule_chain_id, first.timezone, first.at_ms) == (1, 1, "UTC", T0)
    refused = reporting.run(reading(5, 1))
    assert (refused.outcome, "schedule" in refused.error) == ("error", True)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [({"count": 2, "max": 9.0, "values": {}}, "fired"), ({"count": 2, "max": 7.0}, "stopped"), ({"count": 0}, "error")],
)
def test_what_sensors_measured_decides(answer: dict[str, Any], outcome: str) -> None:
    """The answers of a run are in its data; a condition on what is not there has no answer."""
    deciding = chain(READ, on_data("data.cellar.max > 8"), REPORT)
    assert deciding.questions == {QUESTION}
    result = deciding.run(None, T0, World(answers={QUESTION: answer}))
    assert result.outcome == outcome
    assert len(wanted(result)) == (outcome == "fired")


async def test_what_follows_begins_when_sensors_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading takes its time: a delay is not over because of it."""
    clock, applied = [T0], list[Any]()

    class Anything:
        def __init__(self) -> None:
            self.index = self.effects = self

        async def compiled(self, _: object) -> dict[int, Any]:
            delayed = chain(READ, Node("action", "wait", {"action": "delay", "seconds": 1}))
            return {1: delayed}

        async def answer(self, *_: object) -> dict[str, Any]:
            clock[0] += 5_000
            return {"count": 0, "values": {}}

        async def apply(self, said: list[Any]) -> None:
            applied.extend(effect for one in said if isinstance(one, Ran) for effect in one.result.effects)

    monkeypatch.setattr(scheduled_runs, "now_ms", lambda: clock[0])
    anything: Any = Anything()
    runs = job_pb2.ScheduledRuns(
        runs=[job_pb2.ScheduledRun(rule_chain_id=1, organization_id=1, planned_at_ms=T0, manual=True)]
    )
    await scheduled_runs.ScheduledRuns(anything, anything).run_chains(runs.SerializeToString())
    assert [effect.due_ms for effect in applied if isinstance(effect, Deadline)] == [T0 + 6_000]


def test_sensors_are_not_read_for_a_reading() -> None:
    """That would be a query for each of them."""
    result = chain(READ, REPORT).run(reading(5, 1))
    assert (result.outcome, result.node_name) == ("error", "read")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"period": "tomorrow"}, "period"),
        ({"title": ""}, "title"),
        ({"label": "cellar"}, "label"),
        ({"emailTo": ["nobody"]}, "emailTo"),
        ({"sensorUUIDs": [5]}, "sensorUUIDs"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], where: str) -> None:
    """When the chain is saved."""
    with pytest.raises(InvalidChain) as refused:
        chain(Node("action", "make", dict(REPORT.config) | change))
    assert refused.value.errors[0][0].startswith(f"nodes.0.config.{where}")
