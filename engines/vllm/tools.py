"""Tool calls that are valid by construction: a grammar for each model family's way to write them.

The grammar is a structural tag of xgrammar (Dong et al. 2024, arXiv 2411.15100), which vLLM enforces: text is free
until the family's call marker, and from there on the name is one on offer and the arguments fit its JSON schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kani_lite.exceptions import EngineError
from kani_lite.functions import AIFunction
from kani_lite.prompts.parsing import Format

Part = Mapping[str, Any]


class MustCall(list[AIFunction]):
    """The functions that a prompt shows, of which the reply is one call: of any of them, or of `only`."""

    def __init__(self, functions: Sequence[AIFunction], only: str | None = None) -> None:
        """Raises EngineError if there are none, or if `only` is not among them."""
        super().__init__(functions)
        names = [function.name for function in functions]
        if not names:
            raise EngineError("tool_choice asks for a call, but no functions are on offer.")
        if only is not None and only not in names:
            raise EngineError(f"tool_choice={only!r} is no function on offer: there are {', '.join(names)}.")
        self.allowed = [function for function in functions if only in (None, function.name)]


@dataclass(frozen=True)
class CallStyle:
    """How a family writes calls: each from `start` to `end`, with `{name}` where its name stands. In a family that
    writes them as one list, `open` and `close` are around the list and `separator` between two."""

    start: str
    end: str
    triggers: tuple[str, ...]
    open: str = ""
    close: str = ""
    separator: str = ""

    def begin(self, name: str) -> str:
        """What stands before the arguments of a call."""
        return self.start.replace("{name}", name)

    def write(self, name: str, arguments: str) -> str:
        """A reply that is this one call."""
        return f"{self.open}{self.begin(name)}{arguments}{self.end}{self.close}"


_MOST_WHITESPACE = 40  # between two parts of JSON: indented, but not endless
_JSON = '{"name": "{name}", "arguments": '
_V3_START = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n"
_V3 = CallStyle(
    _V3_START,
    "\n```<｜tool▁call▁end｜>",
    ("<｜tool▁calls▁begin｜>",),
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "\n",
)
_V31 = CallStyle(
    "<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    ("<｜tool▁calls▁begin｜>",),
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
)
_MISTRAL = CallStyle(_JSON, "}", ("[TOOL_CALLS]",), "[TOOL_CALLS][", "]", ", ")
_MISTRAL_2025 = CallStyle("[TOOL_CALLS]{name}[ARGS]", "", ("[TOOL_CALLS]",))
_BARE = CallStyle(_JSON, "}", ('{"name": "',))
_R7B = '{"tool_call_id": "0", "tool_name": "{name}", "parameters": '

# some families changed their way under one name: then the template's text says which it is
_STYLES: dict[str, Callable[[str], CallStyle]] = {
    "hermes": lambda _: CallStyle(f"<tool_call>\n{_JSON}", "}\n</tool_call>", ("<tool_call>",)),
    "granite": lambda _: CallStyle(_JSON, "}", ("<|tool_call|>",), "<|tool_call|>[", "]", ", "),
    "mistral": lambda template: _MISTRAL_2025 if "[ARGS]" in template else _MISTRAL,
    "llama3": lambda _: CallStyle('{"name": "{name}", "parameters": ', "}", ('{"name": "',)),
    "deepseek-v3": lambda template: _V3 if "```json" in template else _V31,
    "deepseek-r1": lambda _: _V3,
    "phi-4-mini": lambda _: CallStyle(_JSON, "}", ("<|tool_call|>",), "<|tool_call|>[", "]<|/tool_call|>", ", "),
    "command-r7b": lambda _: CallStyle(_R7B, "}", ("<|START_ACTION|>",), "<|START_ACTION|>[", "]<|END_ACTION|>", ", "),
    "json": lambda _: _BARE,
}


def call_style(fmt: Format, chat_template: str = "") -> CallStyle | None:
    """How calls are written in this format; None if no grammar of them is known here. In a format that has no calls
    the template decides whether they are JSON without markers."""
    find = _STYLES.get(fmt.name)
    if find is not None:
        return find(chat_template)
    bare_json = fmt.bare is not None and fmt.call_start is None
    return _BARE if bare_json else None


def strict_names() -> list[str]:
    """The formats whose calls can be made valid by construction."""
    return sorted(_STYLES)


def call_grammar(style: CallStyle, functions: Sequence[AIFunction]) -> str:
    """The structural tag of a reply that may call these functions, as JSON text. For MustCall the reply is one call."""
    if isinstance(functions, MustCall):
        return json.dumps({"type": "structural_tag", "format": _one_call(style, functions.allowed)})
    tags = [_tag(style, function) for function in functions]
    if style.open:
        tags = [{"type": "tag", "begin": style.open, "content": _list_of(style, tags), "end": style.close}]
    free = {"type": "triggered_tags", "triggers": list(style.triggers), "tags": tags}
    return json.dumps({"type": "structural_tag", "format": free})


def _tag(style: CallStyle, function: AIFunction) -> Part:
    arguments = {
        "type": "json_schema",
        "json_schema": function.json_schema,
        "max_whitespace_cnt": _MOST_WHITESPACE,
    }
    return {"type": "tag", "begin": style.begin(function.name), "content": arguments, "end": style.end}


def _list_of(style: CallStyle, tags: Sequence[Part]) -> Part:
    return {
        "type": "tags_with_separator",
        "tags": list(tags),
        "separator": style.separator,
        "at_least_one": True,
        "stop_after_first": False,
    }


def _one_call(style: CallStyle, functions: Sequence[AIFunction]) -> Part:
    tags = [_tag(style, function) for function in functions]
    one: Part = tags[0] if len(tags) == 1 else {"type": "or", "elements": tags}
    around = [{"type": "const_string", "value": text} for text in (style.open, style.close)]
    return {"type": "sequence", "elements": [around[0], one, around[1]]} if style.open else one
