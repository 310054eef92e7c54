"""Expressions in CEL, https://github.com/google/cel-spec: checked when a chain is saved, bounded when it runs.

CEL has no mixed arithmetic and people write `value > 25`: every number here is a double, literals included. Loops
(`all`, `exists`, `map`...) are not offered: fifty characters of them took 20 s within CEL's budget of 10,000 rounds.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any, NoReturn

from cel_expr_python import cel

from .domain import NodeFailed, Reading, RuleChain, VariableType
from .literals import Rewritten, double_literals
from .run import NOWHERE, Run
from .sayings import ERROR, LOOPS, plain

MAX_LENGTH = 4096  # characters
MAX_TERMS = 256  # tokens; with MAX_PATTERNS it bounds the cost of one evaluation
MAX_PATTERNS = 4  # calls of matches(): linear (RE2), yet up to 7 ms each on the largest reading, 64 KiB

_ORDER = {"_<_": "less", "_<=_": "less_equals", "_>_": "greater", "_>=_": "greater_equals"}
_CONFIG = "stdlib:\n  exclude_macros: [{}]\n  exclude_functions:\n{}".format(
    ", ".join(LOOPS), "".join(f'    - name: "{name}"\n' for name in _ORDER)
)
_ORDERED = {
    "int64": cel.Type.INT,
    "uint64": cel.Type.UINT,
    "double": cel.Type.DOUBLE,
    "string": cel.Type.STRING,
    "timestamp": cel.Type.TIMESTAMP,
    "duration": cel.Type.DURATION,
}
_VALUE: dict[VariableType, cel.Type] = {
    "number": cel.Type.DOUBLE,
    "text": cel.Type.STRING,
    "boolean": cel.Type.BOOL,
    "json": cel.Type.DYN,
}
_SAMPLE: dict[VariableType, Any] = {"number": 1.0, "text": "1", "boolean": True, "json": {}}
_OBJECT = cel.Type.Map(cel.Type.STRING, cel.Type.DYN)

PREVIOUS = "previous"
FETCHED = frozenset({"device", "sensor", "states", "sensors"})
"""Words that somebody must have fetched for the run."""


def _of_reading(name: str) -> Callable[[Run], Any]:
    return lambda run: getattr(run.reading, name, "")


def _received_at(run: Run) -> datetime:
    return datetime.fromtimestamp(run.mark[0] / 1000, UTC)


def _reading(run: Run) -> Mapping[str, Any]:
    reading = run.reading
    if reading is None:
        return {}
    return {
        "id": float(reading.id),
        "value": doubles(reading.value),
        "variableName": reading.variable_name,
        "sensorUUID": reading.sensor_uuid,
        "deviceUuid": reading.device_uuid,
        "receivedAt": _received_at(run),
    }


def _fetched(word: str) -> Callable[[Run], Any]:
    return lambda run: doubles(run.world.context.word(word, run.reading))


_CONTEXT: dict[str, tuple[cel.Type, Callable[[Run], Any]]] = {
    "variableName": (cel.Type.STRING, _of_reading("variable_name")),
    "sensorUUID": (cel.Type.STRING, _of_reading("sensor_uuid")),
    "deviceUuid": (cel.Type.STRING, _of_reading("device_uuid")),
    "receivedAt": (cel.Type.TIMESTAMP, _received_at),
    "reading": (_OBJECT, _reading),
    "now": (cel.Type.TIMESTAMP, lambda run: datetime.fromtimestamp(run.world.now_ms / 1000, UTC)),
    "data": (_OBJECT, lambda run: doubles(run.data)),
    **{word: (_OBJECT, _fetched(word)) for word in FETCHED},
}


_COMPARED: dict[str, Callable[[Any, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_COMPARISON = re.compile(rf"\s*value\s*({'|'.join(_COMPARED)})\s*(-?\d+\.\d+)\s*")
_NAMED_SENSOR = re.compile(r"""\bsensors\s*\[\s*["']([^"'\\]+)["']\s*\]""")
"""A sensor that an expression names: by its name, of the same device, or by its uuid."""


class InvalidCondition(Exception):
    """The condition is refused; `line` and `column` count from 1 in the text as typed."""

    def __init__(self, message: str, column: int, line: int = 1) -> None:
        super().__init__(message)
        self.message, self.column, self.line = message, column, line

    def __str__(self) -> str:
        place = f"column {self.column}" if self.line == 1 else f"line {self.line}, column {self.column}"
        return f"{place}: {self.message}"


class ConditionFailed(NodeFailed):
    """The condition has no answer for this value (a missing key, mixed types)."""


class Expression:
    """A checked expression on readings of one variable type; `words` are the names in it."""

    __slots__ = ("_context", "_eval", "_prepare", "words")

    def __init__(self, program: cel.Expression, variable_type: VariableType, words: Collection[str]) -> None:
        self._eval = program.eval
        self._prepare = _PREPARE.get(variable_type)
        self._context = tuple((name, of) for name, (_, of) in _CONTEXT.items() if name in words)
        self.words = frozenset(words)

    def result(self, run: Run) -> Any:
        """What it makes of the run's reading, as JSON. Raises ConditionFailed."""
        answer = self._answer(run, None)
        if answer.type() == cel.Type.ERROR:
            raise ConditionFailed(plain(str(answer.value())))
        return _as_json(answer.plain_value())

    def _answer(self, run: Run, previous: Any) -> Any:
        try:
            return self._eval(None, self.inputs(run, previous))
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise ConditionFailed(plain(str(error))) from None

    def inputs(self, run: Run, previous: Any = None) -> dict[str, Any]:
        """The values of the names in it."""
        value = None if run.reading is None else run.reading.value
        data = {"value": value if self._prepare is None else self._prepare(value)}
        for name, of in self._context:
            data[name] = of(run)
        if previous is not None:
            data[PREVIOUS] = previous if self._prepare is None else self._prepare(previous)
        return data

    def holds(self, run: Run, previous: Any = None) -> bool:
        """Whether the run's reading, of the expression's variable type, satisfies it. Raises ConditionFailed."""
        try:
            answer = self._answer(run, previous).value()
        except RuntimeError as error:
            raise ConditionFailed(plain(str(error))) from None
        # An ERROR value's content is its text; asking type() as well would cost a quarter of the evaluation.
        if answer is True or answer is False:
            return bool(answer)
        raise ConditionFailed(plain(str(answer)))


class Comparison(Expression):
    """`value > 25`, as nearly all conditions are. Python compares doubles as CEL does, for a twentieth of the cost."""

    __slots__ = ("_compare", "_limit")

    def __init__(self, program: cel.Expression, words: Collection[str], symbol: str, limit: str) -> None:
        super().__init__(program, "number", words)
        self._compare, self._limit = _COMPARED[symbol], float(limit)

    def holds(self, run: Run, previous: Any = None) -> bool:
        value = None if run.reading is None else run.reading.value
        return self._compare(value, self._limit) if type(value) is float else super().holds(run, previous)


class ByType(dict[VariableType, "Expression | None"]):
    """An expression on readings of whatever type it makes sense for, compiled for each when it first comes: None for
    those that it makes no sense for."""

    def __init__(self, expression: str, candidates: Iterable[VariableType], is_condition: bool = True) -> None:
        """Raises InvalidCondition unless it makes sense for one of `candidates`; `first` is what it is for that."""
        super().__init__()
        self._expression, self._is_condition = expression, is_condition
        self.named_sensors = frozenset(found[1] for found in _NAMED_SENSOR.finditer(expression))
        refusals: list[InvalidCondition] = []
        for kind in candidates:
            try:
                self.first = self[kind] = compile_expression(expression, kind, is_condition)
                return
            except InvalidCondition as error:
                refusals.append(error)
        # The type under which the text was understood furthest is the likeliest meant.
        raise max(refusals, key=lambda error: (error.line, error.column))

    def __missing__(self, kind: VariableType) -> Expression | None:
        with suppress(InvalidCondition):
            self[kind] = compile_expression(self._expression, kind, self._is_condition)
        return self.setdefault(kind)

    def on(self, run: Run) -> Expression | None:
        """The expression for the run's reading, or for none at all."""
        return self["json" if run.reading is None else run.reading.variable_type]


@lru_cache(maxsize=4096)
def compile_expression(expression: str, variable_type: VariableType, is_condition: bool = True) -> Expression:
    """The expression for readings of `variable_type`. Raises InvalidCondition with the first mistake."""
    if len(expression) > MAX_LENGTH:
        raise InvalidCondition(f"longer than {MAX_LENGTH} characters", MAX_LENGTH + 1)
    rewritten = double_literals(expression)
    if rewritten.terms > MAX_TERMS:
        raise InvalidCondition(f"more than {MAX_TERMS} terms", 1)
    if rewritten.words.count("matches") > MAX_PATTERNS:
        raise InvalidCondition(f"'matches' more than {MAX_PATTERNS} times", 1)
    program = _program(rewritten, variable_type)
    if is_condition and program.return_type() != cel.Type.BOOL:
        raise InvalidCondition("a condition must be true or false, as in 'value > 25'", 1)
    if variable_type == "number" and (compared := _COMPARISON.fullmatch(rewritten.text)):
        return Comparison(program, rewritten.words, *compared.groups())
    compiled = Expression(program, variable_type, rewritten.words)
    _try_sample(compiled, variable_type)
    return compiled


def _program(rewritten: Rewritten, variable_type: VariableType) -> cel.Expression:
    environment = _environment(variable_type)
    try:
        return environment.compile(rewritten.text)
    except (RuntimeError, TypeError) as refused:
        # Whole numbers exist in CEL (`int(value) % 2 == 0`): what fails with doubles may be right as typed.
        try:
            return environment.compile(rewritten.typed)
        except (RuntimeError, TypeError):
            _refuse(str(refused), rewritten)


@cache
def _environment(variable_type: VariableType) -> cel.Env:
    kind = _VALUE[variable_type]
    variables = {"value": kind, PREVIOUS: kind, **{name: kind for name, (kind, _) in _CONTEXT.items()}}
    # The checker refuses `size(value) > 3.0` although the evaluator compares whole numbers with doubles: declare it.
    pairs = [(name, kind, kind) for name, kind in _ORDERED.items()]
    pairs += [
        ("int64_double", cel.Type.INT, cel.Type.DOUBLE),
        ("double_int64", cel.Type.DOUBLE, cel.Type.INT),
    ]
    functions = [
        cel.FunctionDecl(
            symbol, [cel.Overload(f"{name}_{suffix}", cel.Type.BOOL, [left, right]) for suffix, left, right in pairs]
        )
        for symbol, name in _ORDER.items()
    ]
    return cel.NewEnv(config=cel.NewEnvConfigFromYaml(_CONFIG), variables=variables, functions=functions)


def _try_sample(compiled: Expression, kind: VariableType) -> None:
    sample = _SAMPLE[kind]
    reading = Reading(1, 1, 1, "device", 1, "sensor", 1, "variable", kind, sample, 946_684_800_000, b"")
    try:
        compiled.holds(Run(RuleChain(1, 1), reading, 0, NOWHERE), sample)
    except ConditionFailed as error:
        # Other failures depend on the value, and so does a type within JSON.
        if "regular expression" in str(error) or ("does not take" in str(error) and kind != "json"):
            raise InvalidCondition(str(error), 1) from None


def _refuse(message: str, rewritten: Rewritten) -> NoReturn:
    found = [(plain(text), int(line), int(column)) for line, column, text in ERROR.findall(message)]
    found.sort(key=lambda error: "not offered" not in error[0])  # a refused loop also leaves its variable unknown
    text, line, column = found[0] if found else (plain(message), 1, 1)
    raise InvalidCondition(text, rewritten.typed_column(line, column), max(line, 1))


def doubles(value: Any) -> Any:
    """JSON has one kind of number, CEL has three: `value.count * 2` must not depend on how a device spells 3."""
    kind = type(value)
    if kind is int:
        return float(value)
    if kind is dict:
        return {key: doubles(item) for key, item in value.items()}
    if kind is list:
        return [doubles(item) for item in value]
    return value


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


_PREPARE: dict[VariableType, Callable[[Any], Any]] = {"number": float, "json": doubles}
