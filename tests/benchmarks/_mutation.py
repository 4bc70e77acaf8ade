"""Faults made in source code, one at a time: each a small edit of one expression, as slips of a programmer are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "in": "not in", "not in": "in"}
ARITHMETIC = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "*"}
EXTREMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """One edit of one file.

    Args:
        path: the file.
        line: where the edit begins, from 1.
        operator: which kind of edit.
        before: the text that is replaced.
        after: what takes its place.
        start: offset of that text in the file, in characters.
        function_line: where the function begins that it is in, decorators included: its code's first line.
    """

    path: Path
    line: int
    operator: str
    before: str
    after: str
    start: int
    function_line: int

    def applied(self, source: str) -> str:
        """The file's text with the edit."""
        end = self.start + len(self.before)
        assert source[self.start : end] == self.before
        return source[: self.start] + self.after + source[end:]

    def named(self, source: str) -> str:
        """The file and the edited line, wherever that moves to; of a jump, alone on its line, with the one before."""
        lines = self.applied(source).split("\n")
        edited = lines[self.line - 2 if self.operator == "jump" else self.line - 1 : self.line]
        return f"{self.path.parent.name}/{self.path.name}: {' '.join(line.strip() for line in edited)}"

    def __str__(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}:{self.line} {self.operator}: {self.before} → {self.after}"


def mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of a file: of what functions compute, not of annotations, constants by name, texts and checks."""
    source = path.read_text()
    text = _Text(source)
    for function in [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]:
        if function.name == "__post_init__":
            continue  # checks of values: their tests are of messages
        begins = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
        for node in _computed(function):
            for operator, start, end, after in _edits(node, text):
                yield Mutant(path, text.line(start), operator, source[start:end], after, start, begins)


class _Text:
    def __init__(self, source: str) -> None:
        self.source = source
        self._lines = source.split("\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)

    def at(self, line: int, column: int) -> int:
        """Offset of a place that the parser gives: columns count bytes."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

    def span(self, node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)

    def line(self, offset: int) -> int:
        return self.source.count("\n", 0, offset) + 1


def _computed(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """What a function computes: no annotation, text, error that is raised, or function inside."""
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.JoinedStr, ast.Raise, ast.Assert)):
            continue
        yield node
        for field, value in ast.iter_fields(node):
            if field != "annotation":
                todo += [
                    child for child in (value if isinstance(value, list) else [value]) if isinstance(child, ast.AST)
                ]


def _edits(node: ast.AST, text: _Text) -> Iterator[tuple[str, int, int, str]]:
    """(operator, start, end, text instead) of each edit of a node itself."""
    source = text.source
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield from _between(node.left, node.comparators[0], COMPARISONS, "comparison", text)
    elif isinstance(node, ast.BinOp):
        yield from _between(node.left, node.right, ARITHMETIC, "arithmetic", text)
    elif isinstance(node, ast.BoolOp):
        yield from _between(node.values[0], node.values[1], {"and": "or", "or": "and"}, "logic", text)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        start, _ = text.span(node)
        yield "negation", start, start + len("not "), ""
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)) and not isinstance(node.test, (ast.Compare, ast.BoolOp)):
        start, end = text.span(node.test)
        yield "condition", start, end, f"not ({source[start:end]})"
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in EXTREMES:
        start, end = text.span(node.func)
        yield "extreme", start, end, EXTREMES[node.func.id]
    elif isinstance(node, ast.Constant) and type(node.value) is int and node.value in (0, 1, 2):
        start, end = text.span(node)
        yield "number", start, end, str(node.value + 1)
    elif isinstance(node, (ast.Continue, ast.Break)):
        start = text.at(node.lineno, node.col_offset)
        word = "continue" if isinstance(node, ast.Continue) else "break"
        yield "jump", start, start + len(word), "pass"


def _between(
    left: ast.expr, right: ast.expr, instead: dict[str, str], operator: str, text: _Text
) -> Iterator[tuple[str, int, int, str]]:
    """The edit of an operator that stands alone between its operands."""
    (_, start), (end, _) = text.span(left), text.span(right)
    between = text.source[start:end]
    word = between.strip(" \n()")
    if word in instead:
        at = start + between.index(word)
        yield operator, at, at + len(word), instead[word]
