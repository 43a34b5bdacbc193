"""Tool calls that are valid by construction: vLLM's grammar for a model family's way to write them.

The grammar is a structural tag of xgrammar (Dong et al. 2024, arXiv 2411.15100), which vLLM enforces: text is free
until the family's call marker, and from there on the name is one on offer and the arguments fit its JSON schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kani_lite.engines.call_styles import CallStyle, MustCall
from kani_lite.functions import AIFunction

Part = Mapping[str, Any]

_MOST_WHITESPACE = 40  # between two parts of JSON: indented, but not endless


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
