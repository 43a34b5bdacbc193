"""A call that the grammar allows is a call that the parser reads, in every format that has a grammar."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest

from kani_lite.engines.call_styles import MustCall, call_style, strict_names
from kani_lite.engines.vllm.tools import call_grammar
from kani_lite.exceptions import EngineError
from kani_lite.functions import AIFunction
from kani_lite.prompts.formats import FORMATS, get_format
from kani_lite.prompts.parsing import parse


def get_weather(city: str, unit: Literal["C", "F"] = "C") -> str:
    """The weather."""
    return city + unit


def get_time() -> str:
    """The time."""
    return "noon"


WEATHER, TIME = AIFunction(get_weather), AIFunction(get_time)
# formats whose families write calls in two ways, with what the template of the later way has
TEMPLATES = {"mistral": ["", "[TOOL_CALLS]name[ARGS]{}"], "deepseek-v3": ["", "\n```json\n"]}
STYLES = [(name, template) for name in strict_names() for template in TEMPLATES.get(name, [""])]


def tags(part: Any) -> list[dict[str, Any]]:
    """Every tag of a grammar that holds arguments."""
    if isinstance(part, list):
        return [tag for one in part for tag in tags(one)]
    if not isinstance(part, dict):
        return []
    content = part.get("content")
    here = [part] if isinstance(content, dict) and content.get("type") == "json_schema" else []
    return here + [tag for value in part.values() for tag in tags(value)]


@pytest.mark.parametrize(("name", "template"), STYLES)
@pytest.mark.parametrize("arguments", ['{"city": "Paris", "unit": "F"}', '{"city":"a \\"b\\" }]"}'])
def test_the_parser_reads_what_the_grammar_allows(name: str, template: str, arguments: str) -> None:
    style = call_style(get_format(name), template)
    assert style is not None
    message = parse(get_format(name), style.write("get_weather", arguments), [WEATHER, TIME])
    assert message.tool_calls is not None
    [call] = message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == json.loads(arguments)
    assert not message.text


@pytest.mark.parametrize(("name", "template"), STYLES)
def test_a_call_begins_with_what_the_grammar_waits_for(name: str, template: str) -> None:
    style = call_style(get_format(name), template)
    assert style is not None
    grammar = json.loads(call_grammar(style, [WEATHER, TIME]))["format"]
    assert grammar["type"] == "triggered_tags"
    written = style.write("get_weather", "{}")
    assert any(written.startswith(trigger) for trigger in grammar["triggers"])
    for tag in grammar["tags"]:
        assert any(tag["begin"].startswith(trigger) for trigger in grammar["triggers"])


@pytest.mark.parametrize(("name", "template"), STYLES)
def test_the_grammar_has_each_functions_name_and_schema(name: str, template: str) -> None:
    style = call_style(get_format(name), template)
    assert style is not None
    found = tags(json.loads(call_grammar(style, [WEATHER, TIME])))
    assert [tag["content"]["json_schema"] for tag in found] == [WEATHER.json_schema, TIME.json_schema]
    assert ["get_weather" in tag["begin"] for tag in found] == [True, False]


def test_a_required_call_is_all_of_the_reply() -> None:
    style = call_style(get_format("hermes"))
    assert style is not None
    any_of = json.loads(call_grammar(style, MustCall([WEATHER, TIME])))["format"]
    assert any_of["type"] == "or"
    assert len(tags(any_of)) == 2
    only = json.loads(call_grammar(style, MustCall([WEATHER, TIME], "get_time")))["format"]
    assert only["type"] == "tag"
    assert "get_time" in only["begin"]


def test_a_required_call_needs_its_function() -> None:
    with pytest.raises(EngineError, match="asks for a call, but no functions are on offer"):
        MustCall([])
    with pytest.raises(EngineError, match="'get_date' is no function on offer: there are get_weather, get_time"):
        MustCall([WEATHER, TIME], "get_date")


def test_formats_without_a_grammar_are_known() -> None:
    without = {name for name, fmt in FORMATS.items() if call_style(fmt) is None}
    assert without == {"plain", "chatml", "qwen3-coder", "llama2", "gpt-oss", "phi", "gemma", "command-r"}
