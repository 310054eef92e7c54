"""Facts about conditions: what people write works, what is wrong is refused with its place, nothing runs long."""

import time
from typing import Any

import pytest
from aemos_rules.conditions import Comparison, ConditionFailed, InvalidCondition, compile_expression
from aemos_rules.domain import Reading, RuleChain, VariableType
from aemos_rules.literals import double_literals
from aemos_rules.run import NOWHERE, Run
from hypothesis import given
from hypothesis import strategies as st

AT = 1768905000000  # 2026-01-20T10:30:00Z


def holds(expression: str, kind: VariableType, value: Any) -> bool:
    reading = Reading(9876, 1, 42, "abc-123", 7, "sensor-abc-123", 5, "temperature", kind, value, AT, b"")
    run = Run(RuleChain(1, 1, "chain", True, 1, (), False, "", "UTC"), reading, 0, NOWHERE)
    return compile_expression(expression, kind).holds(run)


@pytest.mark.parametrize(
    ("expression", "kind", "passing", "stopping"),
    [
        ("value > 25", "number", 25.5, 25.0),
        ("value > 25", "number", 26, 25),
        ("value * 2 > 50", "number", 25.5, 25.0),
        ("value * 9 / 5 + 32 > 77.9", "number", 25.6, 25.0),
        ("-value > -25 && -5 < value", "number", 3.0, 25.0),
        ("value in [20, 21, 25]", "number", 21.0, 22.0),
        ("int(value) % 2 == 0 && value > 3", "number", 4.0, 5.0),
        ("value > 0x10 && value < 1e2", "number", 17.0, 100.0),
        ("1 / value > 1", "number", 0.0, 2.0),
        ("value == 9223372036854775808", "number", 2.0**63, 1.0),
        ("{1: 5, 2: 6}[2] > value", "number", 5.0, 6.0),
        ("value > 1 // more than 1", "number", 2.0, 1.0),
        ("value > 3 && variableName == 'temperature'", "number", 4.0, 3.0),
        ("size(variableName) == 11 && value > 3", "number", 4.0, 3.0),
        ("sensorUUID == 'sensor-abc-123' && deviceUuid == 'abc-123' && value > 3", "number", 4.0, 3.0),
        ("receivedAt.getHours() >= 10 && value * 2 > 50", "number", 26.0, 25.0),
        ("receivedAt.getHours('Europe/Berlin') == 11 && value > 3", "number", 4.0, 3.0),
        ("receivedAt > timestamp('2026-01-20T10:29:59Z') && value > 3", "number", 4.0, 3.0),
        ("size(value) > 3", "text", "abcd", "abc"),
        ("size(value) == 3", "text", "abc", "abcd"),
        ("value == 'room 12'", "text", "room 12", "room 12.0"),
        ("double(value) > 25", "text", "25.5", "25"),
        ("value.matches('^err[0-9]{1,3}$')", "text", "err42", "err4242"),
        ("value == '\U0001f600'", "text", "\U0001f600", "x"),
        ("value", "boolean", True, False),
        ("!value", "boolean", False, True),
        ("value.temp * 2 > 50", "json", {"temp": 26}, {"temp": 25.0}),
        ("value.list[value.i] == 5 && value.list[0] > 1", "json", {"list": [2, 5], "i": 1}, {"list": [2, 5], "i": 0}),
        ("has(value.a) && value.a > 3", "json", {"a": 4}, {}),
        ("value == null", "json", None, 1),
        ("value.ok == true", "json", {"ok": True}, {"ok": 1}),
    ],
)
def test_what_people_write_works(expression: str, kind: VariableType, passing: Any, stopping: Any) -> None:
    """Whole numbers compare and calculate with readings; indices, map keys, strings and names keep theirs."""
    assert holds(expression, kind, passing)
    assert not holds(expression, kind, stopping)


@given(
    symbol=st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
    limit=st.integers(-3, 3) | st.floats(-1e9, 1e9).map(lambda limit: f"{limit:.3f}") | st.just(2**60),
    distance=st.sampled_from([-1.0, -1e-9, 0.0, 1e-9, 1.0]),
)
def test_the_short_way_of_a_comparison_is_what_cel_says(symbol: str, limit: object, distance: float) -> None:
    """The second one is no mere comparison."""
    value = float(str(limit)) + distance
    assert isinstance(compile_expression(f"value {symbol} {limit}", "number"), Comparison)
    assert holds(f"value {symbol}{limit}", "number", value) == holds(
        f"value {symbol} {limit} || false", "number", value
    )


@pytest.mark.parametrize(
    ("expression", "kind", "where", "message"),
    [
        ("value >", "number", (1, 8), "ends too early"),
        ("", "number", (1, 1), "ends too early"),
        ("value > 1)", "number", (1, 10), "unexpected ')'"),
        ("value > 25 and value < 30", "number", (1, 12), "unexpected 'and'"),
        ("value $ 1", "number", (1, 7), "cannot read '$'"),
        ('"abc', "number", (1, 1), "cannot read '\"abc'"),
        ("value > 1 && value > 2 && foo", "number", (1, 27), "unknown name 'foo'"),
        ("value > 1 &&\n  foo > 25", "number", (2, 3), "unknown name 'foo'"),
        ("1 + value > 2 &&\n 3 + value > 4 && foo > 25", "number", (2, 19), "unknown name 'foo'"),
        ("'\U0001f600' == 'x' || 1 + foo > 2", "number", (1, 19), "unknown name 'foo'"),
        ("x1 > 1", "number", (1, 1), "unknown name 'x1'"),
        ("value > 'a'", "number", (1, 7), "'>' does not take (number, text)"),
        ("value == 3", "text", (1, 7), "'==' does not take (text, number)"),
        ("value > 1 ? true : 3", "number", (1, 11), "'?:' does not take (boolean, boolean, number)"),
        ("value.x > 1", "number", (1, 6), "a number has no fields"),
        ("value + 1", "number", (1, 1), "a condition must be true or false, as in 'value > 25'"),
        ("value.ok", "json", (1, 1), "a condition must be true or false, as in 'value > 25'"),
        ("dyn(value) + 'a' == 'b'", "number", (1, 1), "'+' does not take (number, text)"),
        ("value.matches('(')", "text", (1, 1), "invalid regular expression: missing ): ("),
        ("[1].exists(a, a > 1)", "number", (1, 11), "'exists' is not offered: conditions have no loops"),
        ("value == '\ud800'", "text", (1, 1), "not valid Unicode"),
    ],
)
def test_a_mistake_is_refused_with_its_place(
    expression: str, kind: VariableType, where: tuple[int, int], message: str
) -> None:
    """Line and column, from 1, are those of the text as typed; the message speaks of variables, not of the library."""
    with pytest.raises(InvalidCondition) as refused:
        compile_expression(expression, kind)
    assert ((refused.value.line, refused.value.column), refused.value.message) == (where, message)


@pytest.mark.parametrize(
    ("expression", "kind", "value", "message"),
    [
        ("value.temp > 1", "json", {}, 'Key not found in map : "temp"'),
        ("value.temp > 1", "json", [1], "only an object has fields"),
        ("value.temp * 2 > 50", "json", {"temp": "x"}, "'*' does not take (text, number)"),
        ("value.a.matches('x')", "json", {"a": 3}, "'matches' does not take (number)"),
        ("value[5] == 1", "json", [1], "Index error: index=5 size=1"),
        ("value.a > 1", "json", {"a": 10**400}, "int too large to convert to float"),
        ("10 / int(value) > 1", "number", 0.0, "divide by zero"),
        ("timestamp(value) > receivedAt", "text", "x", "String to Timestamp conversion failed"),
        ("value == 'a'", "text", "\ud800", "not valid Unicode"),
        ("value > 1", "number", "warm", "could not convert string to float: 'warm'"),
    ],
)
def test_no_answer_is_a_failure_that_says_why(expression: str, kind: VariableType, value: Any, message: str) -> None:
    """A missing key or mixed types is neither yes nor no."""
    with pytest.raises(ConditionFailed) as failed:
        holds(expression, kind, value)
    assert str(failed.value) == message


def nested(loops: int) -> str:
    text = "true"
    for depth in range(loops):
        text = f"[1, 2, 3, 4, 5, 6, 7, 8, 9, 10].all(v{depth}, {text})"
    return text


@pytest.mark.parametrize(
    "bomb",
    [
        "+".join(["value"] * 50_000) + " > 1",
        "+".join(["value"] * 100) + " > 1",
        nested(10),
        nested(2),
        "value == '" + "x" * 1_000_000 + "'",
        "(" * 100 + "value" + ")" * 100 + " > 1",
        "value.t" + ".map(a, a + a)" * 40 + " == []",
        "value.l.all(a, value.t + value.t != '')",
        " || ".join(["value.matches('a')"] * 5),
        '"\\"' * 1300,
        '"""\\' * 1000,
    ],
    ids=lambda bomb: f"{bomb[:24]}...{len(bomb)}",
)
def test_a_bomb_is_refused_at_once(bomb: str) -> None:
    """Sums, loops, brackets and texts without end are refused within 10 ms of CPU for every type of variable."""
    kinds: tuple[VariableType, ...] = ("number", "text", "boolean", "json")
    for kind in kinds:
        compile_expression("true", kind)  # the environment is made once per type
        best = min(refusal_seconds(bomb, kind) for _ in range(3))
        assert best < 0.010


def refusal_seconds(bomb: str, kind: VariableType) -> float:
    start = time.thread_time()
    with pytest.raises(InvalidCondition):
        compile_expression(bomb, kind)
    return time.thread_time() - start


def test_a_pathological_pattern_is_linear() -> None:
    """`(a+)+$` on 64 KiB that almost match takes 10 ms of CPU at most: patterns are RE2's, never Python's."""
    value = "a" * 65_535 + "b"
    took = []
    for _ in range(3):
        start = time.thread_time()
        assert not holds("value.matches('(a+)+$')", "text", value)
        took.append(time.thread_time() - start)
    assert min(took) < 0.010


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("value>25", "value>25.0"),
        ("x1 + a_2 + 3", "x1 + a_2 + 3.0"),
        ("1.5 + .5 + 1e3 + 2E-3 + 0x1F + 0xfu + 7u + 7U", "1.5 + .5 + 1e3 + 2E-3 + 0x1F + 0xfu + 7u + 7U"),
        ("a[0] + f(1)[2] + [3][4] + 'x'[5]", "a[0] + f(1.0)[2] + [3.0][4] + 'x'[5]"),
        ("a[b[1] + (2)] + 3", "a[b[1] + (2)] + 3.0"),
        ("a in [1, 2]", "a in [1.0, 2.0]"),
        ("{1: 2} == x && y > 3", "{1: 2} == x && y > 3.0"),
        ("'1' + \"2\" + r'\\' + 3", "'1' + \"2\" + r'\\' + 3.0"),
        ("'a\\'1' + 2", "'a\\'1' + 2.0"),
        ("'''1 ' 2''' + 3 + \"\"\"4 \" 5\"\"\" + 6", "'''1 ' 2''' + 3.0 + \"\"\"4 \" 5\"\"\" + 6.0"),
        ("b'1' + rb + br\"2\\\" + R'''3\\''' + 4", "b'1' + rb + br\"2\\\" + R'''3\\''' + 4.0"),
        ("1 // 2 '\n + 3", "1.0 // 2 '\n + 3.0"),
        ("'never closed 1", "'never closed 1"),
        ("] 1 ) 2", "] 1.0 ) 2.0"),
    ],
)
def test_whole_numbers_become_doubles(typed: str, text: str) -> None:
    """Except where they are not numbers to calculate with: strings, names, indices, map keys, other literals."""
    assert double_literals(typed).text == text


@given(st.text(alphabet="a1 2.'\"\\[](){}\n/+rbx", max_size=60))
def test_every_place_maps_back(typed: str) -> None:
    """A character of the rewritten text that was typed has the typed place; nothing but `.0` is added."""
    rewritten = double_literals(typed)
    lines = typed.split("\n")
    for number, line in enumerate(rewritten.text.split("\n"), start=1):
        places = [rewritten.typed_column(number, column) for column in range(1, len(line) + 1)]
        assert places == sorted(places)
        assert set(range(1, len(lines[number - 1]) + 1)) <= set(places) | {len(lines[number - 1])}
    assert len(rewritten.text) == len(typed) + 2 * len(rewritten.cuts)


@given(st.text(max_size=80), st.sampled_from(["number", "text", "boolean", "json"]))
def test_any_text_is_accepted_or_refused(expression: str, kind: VariableType) -> None:
    """Nothing but InvalidCondition comes out of the compiler, with a place inside the text or just behind it."""
    line, column = place_of_mistake(expression, kind)
    lines = expression.split("\n")
    assert 1 <= line <= len(lines)
    assert 1 <= column <= len(lines[line - 1]) + 1


def place_of_mistake(expression: str, kind: VariableType) -> tuple[int, int]:
    try:
        compile_expression(expression, kind)
    except InvalidCondition as refused:
        return refused.line, refused.column
    return 1, 1


@given(st.floats(allow_nan=False), st.integers(-(2**53), 2**53))
def test_comparisons_are_those_of_numbers(value: float, limit: int) -> None:
    """`value > n` means what Python means by it, for any whole number a user types."""
    assert holds(f"value > {limit}", "number", value) == (value > limit)
