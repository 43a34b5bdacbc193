from __future__ import annotations

import ast
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kani_lite.terminal.calculator import evaluate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("37 * 12", "444"),
        ("84/2", "42"),
        ("5 / 2", "2.5"),
        ("7 // 2", "3"),
        ("7 % 4", "3"),
        ("2 ** 10", "1024"),
        ("2^10", "1024"),
        ("-(3 + 4) * +2", "-14"),
        ("0.1 + 0.2", "0.3"),
        ("1.5 * 2", "3"),
        ("0 * -1.0", "0"),
        ("2 ** -1", "0.5"),
        ("12 × 7 ÷ 2 − 1", "41"),
        ("12 x 7", "84"),
        ("007 + 1", "8"),
        ("12 * 2 = ?", "24"),
        ("sqrt(16) + abs(-2) + round(2.6)", "9"),
        ("round(2.567, 1)", "2.6"),
        ("min(3, 1, 2) + max(3)", "4"),
        ("2 * pi", "6.28318530718"),
        ("1e3", "1000"),
        ("10 ** 999", "1" + "0" * 999),
    ],
)
def test_values(expression: str, value: str) -> None:
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("9**9**9", "too large"),
        ("10 ** 1001", "too large"),
        ("9.0 ** 999", "too large"),
        ("1 / 0", "divides by zero"),
        ("0 ** -1", "divides by zero"),
        ("5 % 0", "divides by zero"),
        ("1e400", "no real value"),
        ("(-8) ** 0.5", "no real value"),
        ("sqrt(-1)", "no real square root"),
        ("round(5, -1000000000)", "can't be rounded"),
        ("max()", "can't be used that way"),
        ("__import__('os').system('true')", "not known to the calculator"),
        ("(1).real", "not known to the calculator"),
        ("1 and 2", "not known to the calculator"),
        ("1j", "not known to the calculator"),
        ("x + 1", "not known to the calculator"),
        ("2 2", "not an arithmetic expression"),
        ("1,000", "not an arithmetic expression"),
        ("'a' * 3", "not known to the calculator"),
        ("1 < 2", "not an arithmetic expression"),
        ("3 * (2 +", "not an arithmetic expression"),
        ("", "not an arithmetic expression"),
        ("(" * 250, "not an arithmetic expression"),
        ("-" * 300 + "1", "nested too deeply|not an arithmetic expression"),
        ("1+" * 300 + "1", "characters"),
    ],
)
def test_what_has_no_value_says_why(expression: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        evaluate(expression)


@given(st.text("0123456789.+-*/%() ^xe,sqrtminabound", max_size=40))
def test_any_text_gives_a_number_or_a_value_error(expression: str) -> None:
    try:
        value = evaluate(expression)
    except ValueError:
        return
    assert math.isfinite(ast.literal_eval(value)) or len(value) > 300


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9), st.sampled_from("+-*"))
def test_whole_numbers_are_exact(left: int, right: int, op: str) -> None:
    expected = {"+": left + right, "-": left - right, "*": left * right}[op]
    assert evaluate(f"{left} {op} ({right})") == str(expected)
