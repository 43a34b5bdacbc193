"""JSON as models write it: several values one after another, the malformed ones repaired where that is safe."""

from __future__ import annotations

import json
import re
from typing import Any

MOST_TO_REPAIR = 4_000
"""Characters of a malformed call that are worth a repair, whose time is quadratic."""

_DECODER = json.JSONDecoder(strict=False)
_BETWEEN = re.compile(r"[\s;,]*")


def json_values(text: str, closed: bool = True, cut: bool = False) -> tuple[list[Any], str]:
    """The JSON values in a text, a list's items among them, and what is not JSON and can't be made so: all of the text,
    or, if it was cut off, what follows the values that are complete.

    :param closed: the text has an end, so that a number in the last place is complete
    :param cut: a limit cut the text off: it isn't repaired
    """
    text, at, values = text.strip(), 0, list[Any]()
    try:
        while at < len(text):
            value, at = _DECODER.raw_decode(text, at)
            values += value if isinstance(value, list) else [value]
            at = _over(_BETWEEN, text, at)
    except (ValueError, RecursionError):
        if cut:
            items, at = _items(text, at)
            values += items
            return values, text[at:] if values else text
        rest = _repaired(text[at:], closed)
        if rest is None:
            return [], text
        values += rest if isinstance(rest, list) else [rest]
    return values, "" if values else text


def _items(text: str, at: int) -> tuple[list[Any], int]:
    """The complete objects at the beginning of a list that was cut off, and where they end."""
    items: list[Any] = []
    if text[at : at + 1] == "[":
        at = _over(_BETWEEN, text, at + 1)
    try:
        while text[at : at + 1] == "{":
            item, end = _DECODER.raw_decode(text, at)
            items.append(item)
            at = _over(_BETWEEN, text, end)
    except (ValueError, RecursionError):
        pass
    return items, at


def _over(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Behind what the pattern matches here."""
    found = pattern.match(text, at)
    return found.end() if found else at


def _repaired(text: str, closed: bool) -> Any:
    """The JSON object or list that the text must mean; None if it may mean several. Source of the repair: json_repair.

    A text that ends in a string, or in a number if its end marker is missing, may lack some of that value; one that
    ends in a comma, or has no arguments yet, may lack all of them.
    """
    if len(text) > MOST_TO_REPAIR or text[:1] not in ("{", "["):
        return None
    last = _last_outside_strings(text)
    if last is None or last in ":,{[" or (not closed and (last.isdigit() or "{" not in text[1:])):
        return None
    import json_repair

    try:
        value = json_repair.loads(text, skip_json_loads=True)
    except (ValueError, RecursionError):
        return None
    items = value if isinstance(value, list) else [value]
    usable = items and all(isinstance(item, dict) and item for item in items) and _same_words(value, text)
    return value if usable else None


def _last_outside_strings(text: str) -> str | None:
    """The last character of the text that is no space; None if it ends within a string."""
    quote, skip = "", False
    for character in text:
        if skip:
            skip = False
        elif quote:
            skip = character == "\\"
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
    return None if quote else text.rstrip()[-1:]


_WORDS = re.compile(r"\w+")
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_BAD_ESCAPE = re.compile(r'\\(?!["\\/bfnrtu])')


def _same_words(value: Any, text: str) -> bool:
    """Whether the repaired value says all that the text says, in that order, and nothing else."""
    if _BAD_ESCAPE.search(text):
        return False  # what was meant by it is anybody's guess
    made = json.dumps(value, ensure_ascii=False)
    if '""' in made and not ('""' in text or "''" in text):
        return False  # a value was missing
    return [_PYTHON_WORDS.get(w, w) for w in _WORDS.findall(text)] == _WORDS.findall(made)
