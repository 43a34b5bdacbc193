"""From messages to a prompt, and the assistant's part of it back to the same message, for every template."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from chat_templates import BOS, EOS, TEMPLATES

from kani_lite import AIFunction, ChatMessage
from kani_lite.messages import ReasoningPart, ToolCall
from kani_lite.prompts import FORMATS, ChatTemplatePromptPipeline, JinjaChatTemplate, format_for_template, parse
from kani_lite.prompts.calls import read_bare_json

ASKED = "weather in Paris?"
COMMAND_R7B = """{# in the form of Cohere's documented prompt format; ours #}
{%- for message in messages -%}
{%- if message.role == "assistant" -%}
<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>
{%- if message.reasoning_content -%}<|START_THINKING|>{{ message.reasoning_content }}<|END_THINKING|>{%- endif -%}
{%- if message.content -%}<|START_RESPONSE|>{{ message.content }}<|END_RESPONSE|>{%- endif -%}
{%- if message.tool_calls -%}<|START_ACTION|>[
{%- for call in message.tool_calls %}
    {"tool_call_id": "{{ call.id }}", "tool_name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}{{ "," if not loop.last }}
{%- endfor %}
]<|END_ACTION|>{%- endif -%}<|END_OF_TURN_TOKEN|>
{%- else -%}
<|START_OF_TURN_TOKEN|>{{ "<|USER_TOKEN|>" if message.role == "user" else "<|SYSTEM_TOKEN|>" }}{{ message.content }}
{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor -%}<|END_OF_TURN_TOKEN|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{%- endif -%}
"""  # noqa: E501  # a line of it is a line of the prompt
DEEPSEEK_R1 = """{# as DeepSeek R1 writes a reply whose reasoning is kept; ours #}
{%- for message in messages -%}
{%- if message.role == "assistant" -%}
{{ "<｜Assistant｜><think>\\n" + (message.reasoning_content or "") + "\\n</think>\\n\\n" + message.content }}
{%- if message.tool_calls -%}<｜tool▁calls▁begin｜>{%- for call in message.tool_calls -%}
{{ "<｜tool▁call▁begin｜>function<｜tool▁sep｜>" + call.function.name + "\\n```json\\n" }}
{{- (call.function.arguments | tojson) + "\\n```<｜tool▁call▁end｜>" }}
{%- endfor -%}<｜tool▁calls▁end｜>{%- endif -%}<｜end▁of▁sentence｜>
{%- else -%}
<｜User｜>{{ message.content }}{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<｜Assistant｜><think>\\n" }}{%- endif -%}
"""
MINE = {"command_r7b": COMMAND_R7B, "deepseek_r1_kept": DEEPSEEK_R1}
ALL_TEMPLATES = TEMPLATES | MINE

# the kinds of replies below that each template shows whole; the others are two messages in the prompt (see
# prompts/adapt.py), or lose their reasoning, as in the published templates
ROUND_TRIPS = {
    "hermes": "tcpb",
    "qwen2_5": "tcpb",
    "qwen3": "tcpbd",
    "qwen3_coder": "tcpb",
    "llama3_1_json": "tc",
    "mistral_parallel": "tcp",
    "mistral_small": "tcp",
    "deepseek_r1": "tcpb",
    "deepseek_r1_kept": "rdq",
    "deepseek_v3_1": "tcpb",
    "gpt_oss": "tcbd",
    "phi4_mini": "tcp",
    "granite": "tcpb",
    "gemma3": "tcpb",
    "command_r": "tcpb",
    "command_r7b": "tcpbrdq",
    # calls as plain JSON
    "silent": "tcpb",
    "named-alpaca": "tcpb",
    "named-chatml": "tcpb",
    "named-gemma": "tcpb",
    "named-llama2": "tcpb",
    "named-llama3": "tcpb",
    "named-mistral": "tcp",
    "named-phi3": "tcpb",
    "named-vicuna": "tcpb",
    "named-zephyr": "tcpb",
}
TURN_ENDS = re.compile(
    r"<\|im_end\|>|<\|eot_id\|>|<\|eom_id\|>|</s>|<｜end▁of▁sentence｜>|<\|end\|>(?!<\|start\|>assistant)|<\|end_of_text\|>"
    r"|<\|END_OF_TURN_TOKEN\|>|<end_of_turn>|<\|call\|>|\n\n### |\nUSER:"
)


def find(city: str, days: int = 1) -> str:
    """Find the weather."""
    return f"{city} {days}"


PARIS = ToolCall.from_function("find", call_id_="a1b2c3d4e", city="Paris")
ROME = ToolCall.from_function("find", call_id_="b1b2c3d4e", city="Rome", days=2)
THOUGHT = ReasoningPart(content="Which city?")
REPLIES = {
    "t": ChatMessage.assistant("It is sunny, 21 degrees."),
    "c": ChatMessage.assistant(None, tool_calls=[PARIS]),
    "p": ChatMessage.assistant(None, tool_calls=[PARIS, ROME]),
    "b": ChatMessage.assistant("Let me look.", tool_calls=[PARIS]),
    "r": ChatMessage.assistant([THOUGHT, "It is sunny."]),
    "d": ChatMessage.assistant([THOUGHT], tool_calls=[PARIS]),
    "q": ChatMessage.assistant([THOUGHT, "Let me look."], tool_calls=[PARIS, ROME]),
}


def seen(message: ChatMessage) -> tuple[Any, ...]:
    """All of a message but the ids of its calls, which not every template shows."""
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
    return message.role, message.content, calls, message.name, message.tool_call_id


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, kinds in ROUND_TRIPS.items() for k in kinds])
def test_there_and_back(name: str, kind: str) -> None:
    """A reply in the prompt of the next round is read as the reply that it was."""
    template, reply = ALL_TEMPLATES[name], REPLIES[kind]
    pipeline = ChatTemplatePromptPipeline(JinjaChatTemplate(template, bos_token=BOS, eos_token=EOS))
    functions, asked = [AIFunction(find)], ChatMessage.user(ASKED)
    results = [ChatMessage.function("find", f"sunny {call.id}", call.id) for call in reply.tool_calls or ()]
    prompt = pipeline([asked], functions)
    after = pipeline([asked, reply, *(results or [ChatMessage.user("thanks")])], functions)

    # what stands between the question and the reply is what the prompt ends in, or its beginning
    (_, _, header), (before, _, rest) = prompt.partition(ASKED), after.partition(ASKED)
    start = len(common(header, rest))
    if start < len(header):
        start = header.rfind(">", 0, start) + 1
    written = TURN_ENDS.split(rest[start:])[0]
    assert parsed(pipeline, template, before + ASKED + rest[:start], written) == seen(reply)


def parsed(pipeline: ChatTemplatePromptPipeline, template: str, prompt: str, written: str) -> tuple[Any, ...]:
    fmt = format_for_template(template)
    if fmt.bare is None and not pipeline.capabilities().can("calls"):
        fmt = replace(fmt, bare=read_bare_json)  # as engines do
    return seen(parse(fmt.after(prompt), written, [AIFunction(find)]))


def common(a: str, b: str) -> str:
    """The longest common prefix."""
    return a[: next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))]


def test_plain_json_there_and_back() -> None:
    """The format without a template: what a pipeline of steps writes for a call."""
    text = 'Let me look.\n{"name": "find", "arguments": {"city": "Paris"}}'
    message = parse(FORMATS["json"], text, [AIFunction(find)])
    assert seen(message) == seen(REPLIES["b"])
    assert parse(FORMATS["json"], text).text == text  # of no function on offer


def test_every_format_with_calls_goes_there_and_back() -> None:
    formats = {format_for_template(ALL_TEMPLATES[name]).name for name in ROUND_TRIPS}
    # deepseek-r1 and json have no template of their own; llama2, phi and chatml have no calls of their own
    assert formats == set(FORMATS) - {"deepseek-r1", "json"}
