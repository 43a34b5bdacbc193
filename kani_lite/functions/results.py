"""From what a function returned to what a message can hold."""

from __future__ import annotations

import json
from typing import Any

import pydantic

from ..messages import MessagePart

_ELLIPSIS = "..."
_SEPARATORS = ("\n\n", "\n", ". ", ", ", " ")


def result_to_content(value: Any) -> str | list[MessagePart | str]:
    """A function's result as the content of a message: message parts stay parts, models, dicts and lists become JSON,
    anything else becomes its `str()`."""
    if isinstance(value, MessagePart):
        return [value]
    if isinstance(value, list | tuple) and any(isinstance(item, MessagePart) for item in value):
        return [item if isinstance(item, MessagePart) else str(item) for item in value]
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump_json()
    if isinstance(value, dict | list):
        try:
            return json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            return str(value)
    return str(value)


def truncate_text(text: str, max_len: int) -> str:
    """At most `max_len` characters of the text. A text that is cut ends in "..." and is cut after a paragraph if one
    fits, else after a line, a sentence, a clause or a word, else anywhere."""
    if len(text) <= max_len:
        return text
    room = max_len - len(_ELLIPSIS)
    if room <= 0:
        return text[: max(max_len, 0)]
    for separator in _SEPARATORS:
        # a separator that starts within the room ends here
        head = text[: room + len(separator)]
        kept = separator.join(head.split(separator)[:-1])
        if kept.strip():
            return kept + _ELLIPSIS
    return text[:room] + _ELLIPSIS
