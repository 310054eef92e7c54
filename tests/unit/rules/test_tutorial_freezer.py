"""docs/tutorial-freezer.md does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from aemos_rules.alarms import CLEARED, AlarmAssertion
from aemos_rules.domain import Connection, Node, RuleChain
from aemos_rules.engine import compile_chain

from tests.support.play import T0, Play, reading

PAGE = (Path(__file__).parents[3] / "docs/tutorial-freezer.md").read_text(encoding="utf-8")


def tutorial() -> Play:
    """The chain of the page, of the test's sensor."""
    found = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert found
    (shown,) = yaml.safe_load(found[1].replace("freezer-1", "sensor-abc-123"))["ruleChains"]
    nodes = tuple(Node(**node) for node in shown["nodes"])
    ways = tuple(Connection(way["from"], way["outcome"], way["to"]) for way in shown["connections"])
    return Play(compile_chain(RuleChain(1, 1, shown["name"], True, 1, nodes, False, "", "UTC", connections=ways)))


def test_the_table_of_the_page() -> None:
    """Each row: the alarm is raised at minute 15 with nothing sent, and cleared at -18.5 only."""
    play = tutorial()
    rows = re.findall(r"^\| (\d+) \| (\S+|\(nothing is sent\)) \| (.*?) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 7
    for minute, value, _ in rows:
        play.pass_time(60.0 * int(minute))
        if value[0] != "(":
            play.send(reading(float(value), 60.0 * int(minute)))
    said = [(each.value, (each.watermark[0] - T0) / 60_000) for each in play.asserted]
    assert said == [("critical", 15.0), (CLEARED, 25.0)]
    assert [what for _, _, what in rows if "alarm" in what] == [rows[4][2], rows[6][2]]
    raised = play.asserted[0]
    assert isinstance(raised, AlarmAssertion)
    assert (raised.type, raised.message) == ("freezer-too-warm", "-14.0 degrees")
