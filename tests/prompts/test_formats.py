"""Each format against replies as its models write them; which format a model or a template has."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chat_templates import TEMPLATES

from kani_lite import AIFunction, ChatMessage
from kani_lite.exceptions import PromptError
from kani_lite.messages import ReasoningPart
from kani_lite.prompts import (
    FORMATS,
    Format,
    format_for_model,
    format_for_template,
    get_format,
    parse,
)

# format -> (what the model wrote, reasoning, text, calls)
GOLDEN: dict[str, list[tuple[str, str | None, str | None, list[tuple[str, dict[str, Any]]]]]] = {
    "plain": [("  Hello <there>.\n", None, "Hello <there>.", [])],
    "json": [
        ('{"name": "f", "arguments": {"a": 1}}', None, None, [("f", {"a": 1})]),
        ('{"answer": 42}', None, '{"answer": 42}', []),
    ],
    "chatml": [("<think>Hm.</think>\nYes.<|im_end|>", "Hm.", "Yes.", [])],
    "hermes": [
        (
            "<think>\nTwo cities.\n</think>\n\nLet me look.\n"
            '<tool_call>\n{"name": "f", "arguments": {"city": "Paris"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "f", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>',
            "Two cities.",
            "Let me look.",
            [("f", {"city": "Paris"}), ("f", {"city": "Rome"})],
        ),
    ],
    "qwen3-coder": [
        (
            "<tool_call>\n<function=f>\n<parameter=city>\nParis\n</parameter>\n<parameter=spec>\n"
            '{"days": [1, 2]}\n</parameter>\n</function>\n</tool_call>',
            None,
            None,
            [("f", {"city": "Paris", "spec": {"days": [1, 2]}})],
        ),
    ],
    "llama2": [(" Hello. </s>", None, "Hello.", [])],
    "llama3": [
        ('{"name": "f", "parameters": {"city": "Paris"}}<|eot_id|>', None, None, [("f", {"city": "Paris"})]),
        ('<|python_tag|>{"name": "f", "parameters": {}}<|eom_id|>', None, None, [("f", {})]),
        (
            '<|python_tag|>brave_search.call(query="Paris")<|eom_id|>',
            None,
            None,
            [("brave_search", {"query": "Paris"})],
        ),
        ('{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', None, None, [("f", {}), ("g", {})]),
        ("Hello.<|eot_id|>", None, "Hello.", []),
    ],
    "mistral": [
        ('[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "VvvODy9mT"}]</s>', None, None, [("f", {"a": 1})]),
        ('[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}</s>', None, None, [("f", {"a": 1}), ("g", {})]),
        ("[THINK]Hm.[/THINK]Yes.</s>", "Hm.", "Yes.", []),
    ],
    "deepseek-v3": [
        (
            "Sure.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
            '{"a": 1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```'
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
            None,
            "Sure.",
            [("f", {"a": 1}), ("g", {})],
        ),
        (
            "<think>Hm.</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>"
            '{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
            "Hm.",
            None,
            [("f", {"a": 1})],
        ),
    ],
    "deepseek-r1": [
        ("Hm.\n</think>\n\nYes.<｜end▁of▁sentence｜>", "Hm.", "Yes.", []),
        ("<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes.", []),
    ],
    "gpt-oss": [
        (
            "<|channel|>analysis<|message|>I need f.<|end|><|start|>assistant<|channel|>commentary to=functions.f "
            '<|constrain|>json<|message|>{"a": 1}<|call|>',
            "I need f.",
            None,
            [("f", {"a": 1})],
        ),
        (
            '<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"a": 1}<|call|>',
            None,
            None,
            [("f", {"a": 1})],
        ),
        (
            "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
            None,
            "I look.Yes.",
            [],
        ),
    ],
    "phi": [("<think>Hm.</think>Yes.<|end|>", "Hm.", "Yes.", [])],
    "phi-4-mini": [
        ('functools[{"name": "f", "arguments": {"a": 1}}]<|end|>', None, None, [("f", {"a": 1})]),
        ('{"name": "f", "arguments": {"a": 1}}<|end|>', None, None, [("f", {"a": 1})]),
        ("import functools<|end|>", None, "import functools", []),
        (
            '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]<|/tool_call|><|end|>',
            None,
            None,
            [("f", {"a": 1}), ("g", {})],
        ),
    ],
    "gemma": [
        ("Sure.\n```tool_code\nprint(f(a=1))\n```<end_of_turn>", None, "Sure.", [("f", {"a": 1})]),
        ("[f(a=1)]", None, "[f(a=1)]", []),  # of no function on offer
        ("```python\nx = 1\n```", None, "```python\nx = 1\n```", []),
    ],
    "granite": [
        ('<|tool_call|>[{"name": "f", "arguments": {"a": 1}}]<|end_of_text|>', None, None, [("f", {"a": 1})]),
        ('<tool_call>[{"name": "f", "arguments": {"a": 1}}]', None, None, [("f", {"a": 1})]),
        ("<think>Hm.</think><response>Yes.</response>", "Hm.", "Yes.", []),
    ],
    "command-r": [
        (
            'Action: ```json\n[\n    {\n        "tool_name": "f",\n        "parameters": {\n            "a": 1\n'
            "        }\n    }\n]```<|END_OF_TURN_TOKEN|>",
            None,
            None,
            [("f", {"a": 1})],
        ),
    ],
    "command-r7b": [
        (
            "<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[\n"
            '    {"tool_call_id": "0", "tool_name": "f", "parameters": {"a": 1}}\n]<|END_ACTION|><|END_OF_TURN_TOKEN|>',
            "Hm.",
            None,
            [("f", {"a": 1})],
        ),
        ("<|START_RESPONSE|>Yes.<|END_RESPONSE|>", None, "Yes.", []),
    ],
}


def reasoning_of(message: ChatMessage) -> str | None:
    return "".join(p.content for p in message.parts if isinstance(p, ReasoningPart)) or None


def calls_of(message: ChatMessage) -> list[tuple[str, Any]]:
    return [(c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls or []]


def test_every_format_is_here() -> None:
    assert sorted(GOLDEN) == sorted(FORMATS)


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in GOLDEN.items() for case in cases])
def test_replies_as_models_write_them(name: str, case: tuple[str, str | None, str | None, list[Any]]) -> None:
    raw, reasoning, text, calls = case
    message = parse(FORMATS[name], raw)
    assert (reasoning_of(message), message.text or None, calls_of(message)) == (reasoning, text, calls)


def find(city: str, days: int = 1) -> str:
    """Find the weather."""
    return f"{city} {days}"


@pytest.mark.parametrize("name", ["gemma", "llama3"])
def test_calls_in_a_python_list(name: str) -> None:
    fmt, functions = FORMATS[name], [AIFunction(find)]
    text = '[find(city="New \\"York\\"", days=3), find("Rome")]'
    assert calls_of(parse(fmt, text, functions)) == [
        ("find", {"city": 'New "York"', "days": 3}),
        ("find", {"city": "Rome"}),
    ]
    for other in ("[1, 2]", "[see here](http://x.y)", "[other(a=1)]", '[find("Paris")] is what I call', "[find("):
        assert parse(fmt, other, functions).text == other


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", "llama2"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3"),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama3"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral"),
        ("mistralai/Mistral-Small-3.1-24B-Instruct-2503", "mistral"),
        ("Qwen/Qwen2.5-7B-Instruct", "hermes"),
        ("Qwen/Qwen3-0.6B", "hermes"),
        ("Qwen/Qwen3.5-4B", "qwen3-coder"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "deepseek-r1"),
        ("deepseek-ai/DeepSeek-V3.1", "deepseek-v3"),
        ("openai/gpt-oss-20b", "gpt-oss"),
        ("NousResearch/Hermes-3-Llama-3.1-8B", "hermes"),
        ("microsoft/Phi-3-mini-4k-instruct", "phi"),
        ("microsoft/Phi-4-mini-instruct", "phi-4-mini"),
        ("google/gemma-3-4b-it", "gemma"),
        ("ibm-granite/granite-3.3-2b-instruct", "granite"),
        ("ibm-granite/granite-4.0-micro", "hermes"),
        ("CohereForAI/c4ai-command-r-v01", "command-r"),
        ("CohereForAI/c4ai-command-r7b-12-2024", "command-r7b"),
        ("/models/Qwen3-0.6B/", "hermes"),
        ("somebody/whatever", None),
    ],
)
def test_a_models_name_says_its_format(model: str, name: str | None) -> None:
    found = format_for_model(model)
    assert (found and found.name) == name


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("command_r", "command-r"),
        ("deepseek_r1", "deepseek-v3"),
        ("deepseek_v3_1", "deepseek-v3"),
        ("gemma3", "gemma"),
        ("gpt_oss", "gpt-oss"),
        ("granite", "granite"),
        ("hermes", "hermes"),
        ("llama3_1_json", "llama3"),
        ("mistral_parallel", "mistral"),
        ("phi4_mini", "phi-4-mini"),
        ("qwen2_5", "hermes"),
        ("qwen3", "hermes"),
        ("qwen3_coder", "qwen3-coder"),
        ("named-chatml", "chatml"),
        ("named-llama2", "llama2"),
        ("named-llama3", "llama3"),
        ("named-gemma", "gemma"),
        ("named-phi3", "phi"),
        ("named-vicuna", "plain"),
    ],
)
def test_a_templates_text_says_its_format(template: str, name: str) -> None:
    assert format_for_template(TEMPLATES[template]).name == name


def test_get_format() -> None:
    mine = Format("mine")
    assert get_format(mine) is mine
    assert get_format("hermes") is FORMATS["hermes"]
    with pytest.raises(PromptError, match="no format 'hermse': give one of plain, json, chatml"):
        get_format("hermse")
    assert format_for_template(None) is FORMATS["plain"]
