"""The formats of the model families, each a small declaration; chosen by name, by template or by hand."""

from __future__ import annotations

from fnmatch import fnmatchcase

from kani_lite.exceptions import PromptError

from ..parsing import Format
from .command_r import COMMAND_R, COMMAND_R7B
from .deepseek import DEEPSEEK_R1, DEEPSEEK_V3
from .gemma import GEMMA
from .gpt_oss import GPT_OSS
from .granite import GRANITE
from .hermes import CHATML, HERMES, QWEN3_CODER
from .llama import LLAMA2, LLAMA3
from .mistral import MISTRAL
from .phi import PHI, PHI4_MINI
from .plain import JSON, PLAIN

FORMATS = {
    f.name: f
    for f in (
        PLAIN,
        JSON,
        CHATML,
        HERMES,
        QWEN3_CODER,
        LLAMA2,
        LLAMA3,
        MISTRAL,
        DEEPSEEK_R1,
        DEEPSEEK_V3,
        GPT_OSS,
        PHI,
        PHI4_MINI,
        GEMMA,
        GRANITE,
        COMMAND_R,
        COMMAND_R7B,
    )
}
"""All formats, by their names."""

# the first pattern that fits a model's name, in lower case and without its owner, says its format
_BY_NAME = [
    ("*deepseek-r1*", DEEPSEEK_R1),
    ("*deepseek-v3*", DEEPSEEK_V3),
    ("*qwen3.5*", QWEN3_CODER),
    ("*qwen3-coder*", QWEN3_CODER),
    ("*qwen*", HERMES),
    ("*qwq*", HERMES),
    ("*hermes*", HERMES),
    ("*smollm3*", HERMES),
    ("*gpt-oss*", GPT_OSS),
    ("*llama-2*", LLAMA2),
    ("*llama2*", LLAMA2),
    ("*llama-3*", LLAMA3),
    ("*llama3*", LLAMA3),
    ("*mistral*", MISTRAL),
    ("*mixtral*", MISTRAL),
    ("*magistral*", MISTRAL),
    ("*ministral*", MISTRAL),
    ("*devstral*", MISTRAL),
    ("*codestral*", MISTRAL),
    ("*mathstral*", MISTRAL),
    ("*pixtral*", MISTRAL),
    ("*phi-4-mini*", PHI4_MINI),
    ("*phi-*", PHI),
    ("*gemma*", GEMMA),
    ("*granite-4*", HERMES),
    ("*granite*", GRANITE),
    ("*command-r7b*", COMMAND_R7B),
    ("*command-a*", COMMAND_R7B),
    ("*command-r*", COMMAND_R),
]

# what a chat template's own text gives away, the most telling first
_BY_TEMPLATE = [
    ("<|channel|>", GPT_OSS),
    ("<｜tool▁calls▁begin｜>", DEEPSEEK_V3),
    ("[TOOL_CALLS]", MISTRAL),
    ("<|START_ACTION|>", COMMAND_R7B),
    ("<|CHATBOT_TOKEN|>", COMMAND_R),
    ("<function=", QWEN3_CODER),
    ("<|/tool_call|>", PHI4_MINI),
    ("functools[", PHI4_MINI),
    ("<|start_of_role|>", GRANITE),
    ("<tool_call>", HERMES),
    ("<|tool_call|>", GRANITE),
    ("<|python_tag|>", LLAMA3),
    ("<|start_header_id|>", LLAMA3),
    ("<start_of_turn>", GEMMA),
    ("</think>", CHATML),
    ("<|im_start|>", CHATML),
    ("[INST]", LLAMA2),
    ("<|end|>", PHI),
]


def get_format(name: str | Format) -> Format:
    """A format by its name. Raises PromptError, which lists the names, for an unknown one."""
    if isinstance(name, Format):
        return name
    if name not in FORMATS:
        raise PromptError(f"There is no format {name!r}: give one of {', '.join(FORMATS)}, or a Format of your own.")
    return FORMATS[name]


def format_for_model(model: str) -> Format | None:
    """The format of a model by its name, with or without its owner; None for a name that says nothing."""
    name = model.rstrip("/").rsplit("/", 1)[-1].lower()
    return next((f for pattern, f in _BY_NAME if fnmatchcase(name, pattern)), None)


def format_for_template(chat_template: str | None) -> Format:
    """The format that a chat template's own text gives away, by the markers that it writes; PLAIN if none."""
    template = chat_template or ""
    return next((f for marker, f in _BY_TEMPLATE if marker in template), PLAIN)


__all__ = [
    "CHATML",
    "COMMAND_R",
    "COMMAND_R7B",
    "DEEPSEEK_R1",
    "DEEPSEEK_V3",
    "FORMATS",
    "GEMMA",
    "GPT_OSS",
    "GRANITE",
    "HERMES",
    "JSON",
    "LLAMA2",
    "LLAMA3",
    "MISTRAL",
    "PHI",
    "PHI4_MINI",
    "PLAIN",
    "QWEN3_CODER",
    "format_for_model",
    "format_for_template",
    "get_format",
]
