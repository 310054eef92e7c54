"""Makes the whole numbers of a CEL expression doubles, keeping positions."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SUFFIX = ".0"
_TOKEN = re.compile(
    r"""
    (?P<blank>\s+|//[^\n]*)
  | (?P<string>
        [bB]?[rR](?:\"{3}.*?\"{3}|'{3}.*?'{3}|\"[^\"\n]*\"|'[^'\n]*')
      | [bB]?(?:\"{3}(?:\\.|[^\\])*?\"{3}|'{3}(?:\\.|[^\\])*?'{3}|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')
      | `[^`\n]*`
      | ["'].*  # never closed: the compiler will say so
    )
  | (?P<name>[A-Za-z_]\w*)
  | (?P<number>0[xX][0-9a-fA-F]+[uU]?|\d+[uU]|\d*\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+)
  | (?P<whole>\d+)
  | (?P<open>[\[({])
  | (?P<close>[\])}])
  | (?P<other>[<>=!]=|&&|\|\||.)
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_OPERANDS = frozenset({"string", "name", "number", "whole", "close"})


@dataclass(frozen=True, slots=True)
class Rewritten:
    """`text` is `typed` with `.0` inserted at `cuts`, offsets in `typed`; `words` are its identifiers."""

    typed: str
    text: str
    cuts: tuple[int, ...]
    words: tuple[str, ...]
    terms: int

    def typed_column(self, line: int, column: int) -> int:
        """The column (from 1) in `typed` of a place in `text`; lines are the same in both."""
        start = 0
        for _ in range(line - 1):
            start = self.typed.find("\n", start) + 1
        place = start + max(column, 1) - 1
        for cut in self.cuts:
            if start <= cut < place:
                place = max(cut, place - len(_SUFFIX))
        return place - start + 1


def double_literals(expression: str) -> Rewritten:
    """Appends `.0` to whole-number literals, except in an index or a map, where CEL wants integers."""
    pieces: list[str] = []
    cuts: list[int] = []
    words: list[str] = []
    keep = [False]  # per open bracket: do whole numbers stay whole inside?
    terms, after_operand = 0, False
    for token in _TOKEN.finditer(expression):
        kind, text = token.lastgroup, token.group()
        pieces.append(text)
        if kind == "blank":
            continue
        if kind == "whole" and not keep[-1]:
            pieces.append(_SUFFIX)
            cuts.append(token.end())
        elif kind == "name":
            words.append(text)
        elif kind == "open":
            keep.append(keep[-1] or text == "{" or (text == "[" and after_operand))
        elif kind == "close" and len(keep) > 1:
            keep.pop()
        terms, after_operand = terms + 1, kind in _OPERANDS and text != "in"
    return Rewritten(expression, "".join(pieces), tuple(cuts), tuple(words), terms)
