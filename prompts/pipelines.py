"""Prompt pipelines of models whose format is written by hand here, and those that need a key for their reasoning."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from kani_lite.messages import ChatMessage, ChatRole, ToolCall

from .pipeline import PromptPipeline

if TYPE_CHECKING:
    from kani_lite.functions import AIFunction

    from .types import ApplyContext

LLAMA2_PIPELINE = (
    PromptPipeline()
    # a system text and the question after it share one [INST]
    .wrap(role=ChatRole.SYSTEM, prefix="<<SYS>>\n", suffix="\n<</SYS>>\n")
    .translate_role(role=ChatRole.SYSTEM, to=ChatRole.USER)
    .merge_consecutive(role=ChatRole.USER, sep="\n")
    .merge_consecutive(role=ChatRole.ASSISTANT, sep=" ")
    .wrap(role=ChatRole.ASSISTANT)  # no content becomes an empty text
    .conversation_fmt(
        user_prefix="<s>[INST] ",
        user_suffix=" [/INST]",
        assistant_prefix=" ",
        assistant_suffix=" </s>",
        assistant_suffix_if_last="",
    )
)
"""Llama 2 Chat (Touvron et al. 2023, and its reference code). It has no functions: results are user messages."""

LLAMA3_PIPELINE = (
    PromptPipeline()
    .translate_role(
        role=ChatRole.FUNCTION,
        to=ChatRole.USER,
        warn="Llama 3 has no role for function results: it gets them as user messages.",
    )
    .wrap(role=ChatRole.ASSISTANT)  # no content becomes an empty text
    .conversation_fmt(
        prefix="<|begin_of_text|>",
        system_prefix="<|start_header_id|>system<|end_header_id|>\n\n",
        system_suffix="<|eot_id|>",
        user_prefix="<|start_header_id|>user<|end_header_id|>\n\n",
        user_suffix="<|eot_id|>",
        assistant_prefix="<|start_header_id|>assistant<|end_header_id|>\n\n",
        assistant_suffix="<|eot_id|>",
        assistant_suffix_if_last="",
        generation_suffix="<|start_header_id|>assistant<|end_header_id|>\n\n",
    )
)
"""Llama 3, without functions. Llama 3.1 and later have a chat template that knows functions."""


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # as mistral-common does


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def mistral_id(call_id: str) -> str:
    """An id as Mistral's models know them: nine letters and digits, the first of what there are."""
    return re.sub(r"[^A-Za-z0-9]", "", call_id)[:9].rjust(9, "0")


def _mistral_call(call: ToolCall) -> str:
    arguments = _json_or_text(call.function.arguments)
    return _dumps({"name": call.function.name, "arguments": arguments, "id": call.id})


def _mistral_result(msg: ChatMessage) -> ChatMessage:
    result = {"content": _json_or_text(msg.text or ""), "call_id": msg.tool_call_id}
    return msg.copy_with(content=_dumps(result))


def _mistral_tools(functions: list[AIFunction]) -> str:
    specs = [{"name": f.name, "description": f.desc, "parameters": f.json_schema} for f in functions]
    return f"[AVAILABLE_TOOLS] {_dumps([{'type': 'function', 'function': s} for s in specs])}[/AVAILABLE_TOOLS]"


def _tools_before_last(msg: ChatMessage, context: ApplyContext) -> ChatMessage:
    if not (context.functions and context.is_last_of_type):
        return msg
    return msg.copy_with(content=f"{_mistral_tools(context.functions)}{msg.text}")


def _tools_alone(msgs: list[ChatMessage], functions: list[AIFunction]) -> list[ChatMessage]:
    """The functions take room in a prompt without messages too, where their tokens are counted."""
    return [ChatMessage.user(_mistral_tools(functions))] if functions and not msgs else msgs


MISTRAL_V3_PIPELINE = (
    PromptPipeline()
    .translate_role(
        role=ChatRole.SYSTEM,
        to=ChatRole.USER,
        warn="Mistral's format has no role for system messages: it gets them as user messages.",
    )
    .merge_consecutive(role=ChatRole.USER, sep="\n\n")
    .merge_consecutive(role=ChatRole.ASSISTANT, sep=" ")
    .wrap(role=ChatRole.USER, prefix="[INST] ", suffix="[/INST]")  # here, since the functions come before it
    .ensure_bound_function_calls(id_translator=mistral_id)
    # the space belongs to the text: calls follow [/INST] without one
    .wrap(role=ChatRole.ASSISTANT, prefix=" ", predicate=lambda msg: bool(msg.text) or not msg.tool_calls)
    .function_call_fmt(_mistral_call, prefix="[TOOL_CALLS] [", sep=", ", suffix="]")
    .apply(_mistral_result, role=ChatRole.FUNCTION)
    .apply(_tools_before_last, role=ChatRole.USER)
    .macro_apply(_tools_alone)
    .conversation_fmt(
        prefix="<s>",
        assistant_suffix="</s>",
        assistant_suffix_if_last="",
        function_prefix="[TOOL_RESULTS] ",
        function_suffix="[/TOOL_RESULTS]",
    )
)
"""Mistral's third tokenizer version: Mistral 7B v0.3, Mixtral 8x22B, and what came out until September 2024. Source:
mistral-common, tokens/tokenizers/sentencepiece.py, and the models' chat templates."""
