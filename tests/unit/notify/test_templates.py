"""Templates of messages: what they make, and that they cannot make much, take long or reach out."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from aemos_core.errors import AemosError
from aemos_notify.subscriptions import Filter
from aemos_notify.templates import EXAMPLE, check, examples, json_body, text


def test_the_default_says_what_happened() -> None:
    """In a subject of one line and a text."""
    made = text("", "", EXAMPLE)
    assert made.subject == "[critical] freezer-too-warm raised (abc-123)"
    assert "message: above -15 °C for 10 minutes" in made.body


def test_a_webhook_gets_the_notification_itself() -> None:
    """As JSON, or what its template makes of it, which must be JSON too."""
    assert json.loads(json_body("", EXAMPLE).body) == EXAMPLE
    body = '{"text": {{ metadata.message | tojson }}}'
    assert json.loads(json_body(body, EXAMPLE).body) == {"text": "above -15 °C for 10 minutes"}
    for body in ("{{ metadata.message }}", "[" * 15_000):
        with pytest.raises(AemosError, match="does not make JSON"):
            json_body(body, EXAMPLE)


@pytest.mark.parametrize(
    "template",
    [
        "{{ missing }}",
        "{{ metadata.missing }}",
        "{% if",
        "{{ 'x' * 100000000 }}",
        "{{ 10 ** 100000 }}",
        "{{ '%0999999999d' % 5 }}",
        "{% set x = 'xx' %}{{ x ~ x }}",
        "{{ range(1000000000) }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ 'a' | replace('a', 'aa') }}",
        "{{ [1] | batch(1000000000, 'x') }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ metadata.items.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 1 / 0 }}",
        "{% with a = 'xx' %}{% with b = a ~ a %}{{ b ~ b }}{% endwith %}{% endwith %}",
        "{% block a %}x{% endblock %}",
        "{{ metadata.message | join(metadata.message) }}",
        "{{ [type, type] | join('x' * 21) }}",
        "{{ [type, type] | join('123456789 123456789 1') }}",
        "{{ type" + " | tojson" * 20 + " }}",
        "{{ metadata | tojson(indent=1000000) }}",
        "{{ " + "(" * 300 + "1" + ")" * 300 + " }}",
        "{{ " + "not " * 3000 + "1 }}",
        "{% if 1 %}" * 200 + "{% endif %}" * 200,
        "{{ lipsum(100000) }}",
        "{{ type | unknown }}",
        "{{ type | batch(2) }}",
        "{{ '\\ud800' }}",
    ],
)
def test_what_a_template_may_not(template: str) -> None:
    """Each is refused with the template's name."""
    with pytest.raises(AemosError) as refused:
        text("", template, EXAMPLE)
    assert [error.loc for error in refused.value.errors] == ["bodyTemplate"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 | round(100000000, 'ceil') }}",
        "{{ 1 | round(precision=-100000000, method='floor') }}",
        "{{ '" + "&" * 8_000 + "'" + "|e|title" * 80 + " }}",
        "{% for k in metadata %}{% if notification ~ " + "notification ~ " * 50 + "k == 1 %}{% endif %}{% endfor %}",
        "{% for k in metadata if notification ~ " + "notification ~ " * 50 + "k == 1 %}{% endfor %}",
        "{% for k in metadata %}" * 15 + "{% endfor %}" * 15,
    ],
)
def test_a_template_ends_soon(template: str) -> None:
    """What computes for long is cut, whatever it writes: nobody else waits for it."""
    began = time.thread_time()
    with pytest.raises(AemosError) as refused:
        json_body(template, {**EXAMPLE, "metadata": {f"key-{number}": number for number in range(1_500)}})
    assert time.thread_time() - began < 1.5
    assert [error.loc for error in refused.value.errors] == ["bodyTemplate"]


def test_what_a_template_may() -> None:
    """Conditions, loops over what there is, and filters that make little."""
    template = (
        "{% if type in ['alarm'] %}{{ metadata.keys() | join(', ') }}{% endif %}"
        "{% for key, value in metadata.items() if key == 'severity' %}, {{ loop.index }} "
        "{{ value | upper }}{% endfor %}"
        "{% for a in [1, 2] %}{% for b in 'xy' %}{{ loop.length * a }}{{ b }}{% endfor %}{% endfor %}"
        "{{ 2.345 | round(2, 'floor') }}{{ {'b': '<', 'a': 1} | tojson }}"
        "{{ '' if metadata.newValue is defined else '.' }}"
    )
    assert (
        text("", template, EXAMPLE).body
        == "alarmId, alarmType, change, severity, active, acknowledged, message, 1 CRITICAL2x2y4x4y2.34"
        '{"a": 1, "b": "\\u003c"}.'
    )


def test_a_template_is_tried_on_what_it_is_for() -> None:
    """On an alarm when no type is named; nothing is known of a user's own types, so only what no type could mend."""
    (change,) = examples(["device-state-change"])
    assert text("{{ metadata.newValue }}", "", change).subject == "warning"
    assert [example["type"] for example in examples([])] == ["alarm"]
    assert examples(["maintenance"]) == []
    with pytest.raises(AemosError):
        check("{% include 'x' %}", "")


@pytest.mark.parametrize("event", ["device-state-change", "alarm", "device-connectivity", "rule-run"])
def test_examples_are_what_is_announced(event: str) -> None:
    """They have the metadata of the page on events, which is tested against what is sent."""
    page = Path("docs/events.md").read_text(encoding="utf-8")
    documented = json.loads(page.split(f"### {event}\n")[1].split("```json\n")[1].split("```")[0])
    (example,) = examples([event])
    assert (example["type"], set(example["metadata"])) == (documented["type"], set(documented["metadata"]))


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (Filter(), True),
        (Filter(event_types=("alarm",)), True),
        (Filter(event_types=("device-state-change",)), False),
        (Filter(severities=("critical", "major")), True),
        (Filter(severities=("info",)), False),
        (Filter(device_uuids=("abc-123",)), True),
        (Filter(device_uuids=("other",)), False),
        (Filter(state_values=("warning",)), False),
        (Filter(device_label="site=hamburg"), True),
        (Filter(device_label="site=berlin"), False),
        (Filter(device_label="floor=1"), False),
    ],
)
def test_filters(wanted: Filter, matches: bool) -> None:
    """What is empty stands for any; what is not must all hold."""
    assert wanted.matches(EXAMPLE, {"site": "hamburg"}) is matches
