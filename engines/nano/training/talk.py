"""Small talk, and how Nano tells what a tool returned."""

from __future__ import annotations

import json
from typing import Any

from .lexicon import DATA


def read_small_talk() -> list[tuple[list[str], list[str], str]]:
    """(what the user says in training, in the evaluation, what Nano answers); one form in five is held out."""
    rows = []
    for block in (DATA / "small_talk.txt").read_text(encoding="utf-8").split("[answer] ")[1:]:
        answer, *forms = block.strip().splitlines()
        held = max(1, len(forms) // 5)
        rows.append((forms[:-held], forms[-held:], answer))
    return rows


ROWS = read_small_talk()


def result_sentence(text: str) -> str:
    """How Nano tells a tool's result, whatever its form."""
    if text.startswith("Error: "):
        return f"That did not work: {text.removeprefix('Error: ')}"
    try:
        data = json.loads(text)
    except ValueError:
        data = None
    if isinstance(data, dict) and data:
        return join([f"the {k.replace('_', ' ')} is {plain(v)}" for k, v in data.items()], capital=True)
    if isinstance(data, list) and data:
        return f"I found {join([plain(v) for v in data], capital=False)}"
    if text in ("None", "null", "", "ok", "OK", "true", "True", "done", "success"):
        return "Done."
    if text.endswith((".", "!", "?")):
        return text
    return f"The result is {text}."


def plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def join(parts: list[str], capital: bool) -> str:
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return (text[0].upper() + text[1:] if capital else text) + "."
