from __future__ import annotations

import inspect
from datetime import UTC, datetime

import pytest

from kani_lite.terminal import demo_tools as tools
from kani_lite.terminal.units import convert, format_number


def test_names_parameters_and_descriptions_are_those_the_embedded_model_knows() -> None:
    shown = {f.name: (f.desc, str(inspect.signature(f.inner, eval_str=True))) for f in tools.demo_tools()}
    assert shown == {
        "calculate": ("Evaluate an arithmetic expression.", "(expression: str) -> str"),
        "roll_dice": ("Roll dice and add them up.", "(count: int = 1, sides: int = 6) -> str"),
        "current_time": ("Get the current date and time.", "() -> str"),
        "convert_units": (
            "Convert a value from one unit to another.",
            "(value: float, from_unit: str, to_unit: str) -> str",
        ),
    }


@pytest.mark.anyio
async def test_a_tool_can_be_called_as_a_model_would() -> None:
    calculate = tools.demo_tools()[0]
    assert await calculate(expression="37 * 12") == "444"


def test_dice() -> None:
    assert {tools.roll_dice() for _ in range(300)} == set("123456")
    assert 10 <= int(tools.roll_dice(10, 20)) <= 200
    for count, sides in [(0, 6), (1001, 6), (1, 1), (1, 1_000_001)]:
        with pytest.raises(ValueError, match="not"):
            tools.roll_dice(count, sides)


def test_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_now", lambda: datetime(2026, 11, 20, 14, 5, tzinfo=UTC))
    assert tools.current_time() == "It is 14:05 on Friday 20 November 2026."


@pytest.mark.parametrize(
    ("value", "source", "target", "sentence"),
    [
        (3, "km", "miles", "3 km is 1.864 miles."),
        (100, "celsius", "Fahrenheit", "100 celsius is 212 Fahrenheit."),
        (-40, "°F", "degrees C", "-40 °F is -40 degrees C."),
        (0, "kelvin", "celsius", "0 kelvin is -273.15 celsius."),
        (2, "gallons", "liters", "2 gallons is 7.571 liters."),
        (5, "feet", "inches", "5 feet is 60 inches."),
        (90, "minutes", "hours", "90 minutes is 1.5 hours."),
        (1, "MB", "Mbit", "1 MB is 8 Mbit."),
        (60, "mph", "km/h", "60 mph is 96.561 km/h."),
        (1, "nautical mile", "km", "1 nautical mile is 1.852 km."),
        (1, "mm", "miles", "1 mm is 6.214e-07 miles."),
        (2, "tons", "pounds", "2 tons is 4409.245 pounds."),
        (3, "grams", "ounces", "3 grams is 0.1058 ounces."),
    ],
)
def test_conversions(value: float, source: str, target: str, sentence: str) -> None:
    assert tools.convert_units(value, source, target) == sentence


UNITS = (
    "km miles meters feet inches cm kg pounds grams ounces liters gallons celsius fahrenheit hours minutes seconds "
    "days yards mm kelvin tons"
)


@pytest.mark.parametrize("unit", UNITS.split())
def test_every_unit_the_embedded_model_learned_is_known(unit: str) -> None:
    assert convert(300, unit, unit) == 300


@pytest.mark.parametrize(
    ("value", "source", "target", "why"),
    [
        (1, "km", "kg", "'km' can't become 'kg'"),
        (1, "parsnips", "kg", "'parsnips' is not known"),
        (1, "kg", "", "'' is not known"),
        (-500, "C", "F", "below absolute zero"),
        (float("nan"), "km", "m", "not a number"),
    ],
)
def test_conversions_that_make_no_sense(value: float, source: str, target: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        convert(value, source, target)


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.0, "3"), (1.8641135, "1.864"), (0.000123456, "0.0001235"), (-0.0, "0"), (1e20, "1e+20"), (100.0, "100")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text
