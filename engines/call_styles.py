"""How each model family writes its tool calls, for the engines that make calls valid by construction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kani_lite.exceptions import EngineError
from kani_lite.functions import AIFunction
from kani_lite.prompts.parsing import Format


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
