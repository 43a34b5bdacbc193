"""Arithmetic on text, without eval: the expression is parsed, and only known nodes are computed, within bounds."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable

Number = int | float

MAX_LENGTH = 500  # characters of an expression
MAX_DEPTH = 60  # operations inside each other
MAX_DIGITS = 1000  # of any whole number on the way
_MAX_BITS = int(MAX_DIGITS * math.log2(10))

_SPELLINGS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "**", "[": "(", "]": ")"})
_CONSTANTS = {"pi": math.pi, "e": math.e}


def evaluate(expression: str) -> str:
    """The value of an arithmetic expression as text, whole numbers without a point: `37 * 12` gives `444`.

    Raises ValueError, with the reason, for anything that isn't arithmetic, has no value or is too large.
    """
    tree = _parse(expression)
    try:
        value = _Evaluator(expression).visit(tree, 0)
    except ZeroDivisionError:
        raise ValueError(f"{expression!r} divides by zero.") from None
    except OverflowError:
        raise ValueError(f"The result of {expression!r} is too large.") from None
    return _to_text(value)


def _parse(expression: str) -> ast.expr:
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"The expression has {len(expression)} characters; at most {MAX_LENGTH} are allowed.")
    text = expression.translate(_SPELLINGS).strip().rstrip("=? ")
    text = re.sub(r"(?<=[\d)])\s*[xX]\s*(?=[\d(])", "*", text)
    text = re.sub(r"(?<![\w.])0+(?=\d)", "", text)  # 007 is 7
    for word in re.findall(r"[^\W\d]+", text):
        if word not in _FUNCTIONS and word not in _CONSTANTS and word != "E":
            raise ValueError(f"{word!r} is not known to the calculator in {expression!r}.")
    if not text or re.search(r"[^\w\s.+\-*/%(),]", text):
        raise ValueError(f"{expression!r} is not an arithmetic expression.")
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError, ValueError):
        raise ValueError(f"{expression!r} is not an arithmetic expression.") from None


class _Evaluator:
    def __init__(self, expression: str) -> None:
        self.expression = expression

    def visit(self, node: ast.expr, depth: int) -> Number:
        if depth > MAX_DEPTH:
            raise ValueError(f"{self.expression!r} is nested too deeply.")
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return self.bounded(value)
            case ast.Name(id=name) if name in _CONSTANTS:
                return _CONSTANTS[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self.visit(operand, depth + 1)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.visit(operand, depth + 1)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                compute = _OPERATORS[type(op)]
                return self.bounded(compute(self.visit(left, depth + 1), self.visit(right, depth + 1)))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
                values = [self.visit(arg, depth + 1) for arg in args]
                try:
                    return self.bounded(_FUNCTIONS[name](*values))
                except TypeError:
                    raise ValueError(f"{name} can't be used that way in {self.expression!r}.") from None
        raise ValueError(f"{self.expression!r} is not an arithmetic expression.")

    def bounded(self, value: Number) -> Number:
        if isinstance(value, int):
            if value.bit_length() > _MAX_BITS:
                raise OverflowError
        elif isinstance(value, complex) or not math.isfinite(value):
            raise ValueError(f"{self.expression!r} has no real value.")
        return value


def _divide(left: Number, right: Number) -> Number:
    if isinstance(left, int) and isinstance(right, int) and right and left % right == 0:
        return left // right
    return left / right


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int):
        # judged before it is computed: 9**9**9 has 370 million digits
        if abs(base) > 1 and exponent * (abs(base).bit_length() - 1) > _MAX_BITS:
            raise OverflowError
        if exponent < 0:
            return float(base) ** exponent
    value: Number = base**exponent
    return value


def _sqrt(value: Number) -> Number:
    if value < 0:
        raise ValueError("A negative number has no real square root.")
    if isinstance(value, int) and math.isqrt(value) ** 2 == value:
        return math.isqrt(value)
    return math.sqrt(value)


def _round(value: Number, digits: Number = 0) -> Number:
    if not isinstance(digits, int) or abs(digits) > MAX_DIGITS:
        raise ValueError(f"A number can't be rounded to {digits} digits.")
    return round(value, digits)


def _smallest(first: Number, *others: Number) -> Number:
    return min(first, *others, first)


def _largest(first: Number, *others: Number) -> Number:
    return max(first, *others, first)


_OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_FUNCTIONS: dict[str, Callable[..., Number]] = {
    "sqrt": _sqrt,
    "abs": abs,
    "round": _round,
    "min": _smallest,
    "max": _largest,
}


def _to_text(value: Number) -> str:
    if isinstance(value, int):
        return str(value)
    text = f"{value:.12g}"  # twelve digits: 0.1 + 0.2 is 0.3 to the one who asked
    return "0" if text == "-0" else text
