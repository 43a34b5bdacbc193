"""Units of measurement: which there are, how people write them, and how one becomes another."""

from __future__ import annotations

import math
from dataclasses import dataclass

# per quantity: factor to its base unit, then the spellings; a plural with s is understood everywhere
_TABLE = {
    "length": """
        1 m meter metre | 1000 km kilometer kilometre | 0.01 cm centimeter centimetre | 0.001 mm millimeter millimetre
        1e-6 um µm micrometer micron | 1e-9 nm nanometer | 0.1 dm decimeter decimetre | 0.0254 in inch inches
        0.3048 ft foot feet | 0.9144 yd yard | 1609.344 mi mile | 1852 nmi nautical_mile""",
    "mass": """
        1 kg kilo kilogram kilogramme | 0.001 g gr gram gramme | 1e-6 mg milligram | 1e-9 µg ug microgram
        1000 t ton tonne metric_ton | 0.45359237 lb lbs pound | 0.028349523125 oz ounce | 6.35029318 st stone""",
    "volume": """
        1 l liter litre | 0.001 ml milliliter millilitre cc | 0.01 cl centiliter centilitre | 0.1 dl deciliter decilitre
        1000 m3 cubic_meter cubic_metre | 3.785411784 gal gallon | 0.946352946 qt quart | 0.473176473 pt pint
        0.2365882365 cup | 0.0295735295625 fl_oz fluid_ounce | 0.01478676478125 tbsp tablespoon
        0.00492892159375 tsp teaspoon""",
    "time": """
        1 s sec second | 0.001 ms millisecond | 1e-6 us µs microsecond | 60 min minute | 3600 h hr hour | 86400 d day
        604800 wk week | 1209600 fortnight | 2629746 month | 31556952 y yr year | 3155695200 century centuries""",
    "data": """
        1 B byte | 0.125 bit | 1e3 kB kilobyte | 1e6 MB megabyte | 1e9 GB gigabyte | 1e12 TB terabyte | 1e15 PB petabyte
        1024 KiB kibibyte | 1048576 MiB mebibyte | 1073741824 GiB gibibyte | 1099511627776 TiB tebibyte
        125 kbit kilobit | 125000 Mbit megabit | 125000000 Gbit gigabit""",
    "speed": """
        1 m/s mps meter_per_second meters_per_second metre_per_second metres_per_second
        0.2777777777777778 km/h kmh kph kilometer_per_hour kilometers_per_hour kilometre_per_hour kilometres_per_hour
        0.44704 mph mi/h mile_per_hour miles_per_hour | 0.5144444444444445 kn kt knot
        0.3048 ft/s fps foot_per_second feet_per_second""",
}
# kelvin = (value + offset) * factor
_TEMPERATURES = {
    (0.0, 1.0): "k kelvin kelvins",
    (273.15, 1.0): "c °c celsius centigrade degree_celsius degrees_celsius degree_c degrees_c",
    (459.67, 5 / 9): "f °f fahrenheit degree_fahrenheit degrees_fahrenheit degree_f degrees_f",
}


@dataclass(frozen=True, slots=True)
class Unit:
    """base = (value + offset) * factor, in the base unit of its quantity."""

    quantity: str
    factor: float
    offset: float = 0.0


def _read_table() -> dict[str, Unit]:
    units: dict[str, Unit] = {}
    for quantity, text in _TABLE.items():
        unit = Unit(quantity, 1.0)
        for word in text.replace("|", " ").split():
            try:
                unit = Unit(quantity, float(word))
            except ValueError:
                units[word] = unit
    for (offset, factor), names in _TEMPERATURES.items():
        units |= dict.fromkeys(names.split(), Unit("temperature", factor, offset))
    return units


_UNITS = _read_table()
_UNITS_LOWER = {name.lower(): unit for name, unit in _UNITS.items()}


def find_unit(name: str) -> Unit:
    """The unit that a person means by this word. Raises ValueError if there is none."""
    word = "_".join(name.strip().rstrip(".").split())
    singular = word[:-1] if word.lower().endswith("s") and len(word) > 2 else word
    for spelling in (word, singular):
        unit = _UNITS.get(spelling) or _UNITS_LOWER.get(spelling.lower())
        if unit is not None:
            return unit
    raise ValueError(f"The unit {name!r} is not known.")


def convert(value: float, from_unit: str, to_unit: str) -> float:
    """`value` of one unit in another. Raises ValueError, naming them, if they are unknown or measure unlike things."""
    source, target = find_unit(from_unit), find_unit(to_unit)
    if source.quantity != target.quantity:
        raise ValueError(
            f"{from_unit!r} can't become {to_unit!r}: one measures {source.quantity}, the other {target.quantity}."
        )
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a number that can be converted.")
    if source == target:
        return value
    base = (value + source.offset) * source.factor
    if source.quantity == "temperature" and base < -1e-9:
        raise ValueError(f"{format_number(value)} {from_unit} is below absolute zero.")
    return base / target.factor - target.offset


def format_number(value: float) -> str:
    """Three decimals, or four digits of something small; no zeros at the end."""
    size = abs(value)
    if size and (size < 1e-4 or size >= 1e15):
        return f"{value:.4g}"
    decimals = 3 if size >= 1 or not size else 3 - math.floor(math.log10(size))
    text = f"{value:.{decimals}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
