"""Templates of messages: what they make, and that they cannot make much, take long or reach out."""

from __future__ import annotations

import json

import pytest
from aemos_core.errors import AemosError
from aemos_notify.subscriptions import Filter
from aemos_notify.templates import EXAMPLE, render


def test_the_default_says_what_happened() -> None:
    """In a subject of one line and a text."""
    made = render("email", "", "", EXAMPLE)
    assert made.subject == "[critical] freezer-too-warm raised (abc-123)"
    assert "message: above -15 °C for 10 minutes" in made.body


def test_a_webhook_gets_the_notification_itself() -> None:
    """As JSON, or what its template makes of it, which must be JSON too."""
    assert json.loads(render("webhook", "", "", EXAMPLE).body) == EXAMPLE
    body = '{"text": {{ metadata.message | tojson }}}'
    assert json.loads(render("webhook", "", body, EXAMPLE).body) == {"text": "above -15 °C for 10 minutes"}
    with pytest.raises(AemosError, match="does not make JSON"):
        render("webhook", "", "{{ metadata.message }}", EXAMPLE)


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
        "{% for a in metadata %}{% for b in metadata %}x{% endfor %}{% endfor %}",
        "{{ range(1000000000) }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ 'a' | replace('a', 'aa') }}",
        "{{ [1] | batch(1000000000, 'x') }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ metadata.items.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 1 / 0 }}",
        "{{ lipsum(100000) }}",
    ],
)
def test_what_a_template_may_not(template: str) -> None:
    """Each is refused with the template's name."""
    with pytest.raises(AemosError) as refused:
        render("email", "", template, EXAMPLE)
    assert [error.loc for error in refused.value.errors] == ["bodyTemplate"]


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
