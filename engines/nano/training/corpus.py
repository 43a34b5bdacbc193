"""From dialogues to token ids and loss masks."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

from .dialogues import Dialogue, Message


def render_tool(tool: dict[str, Any]) -> str:
    """One tool as the chat template writes it (a test compares the two)."""
    f = tool["function"]
    dump = lambda v: json.dumps(v, ensure_ascii=False)  # noqa: E731
    props = []
    for name, p in f["parameters"]["properties"].items():
        desc = f', "description": {dump(p["description"])}' if p.get("description") else ""
        enum = f', "enum": {dump(p["enum"])}' if p.get("enum") else ""
        props.append(f'{dump(name)}: {{"type": {dump(p["type"])}{desc}{enum}}}')
    return (
        f'{{"name": {dump(f["name"])}, "description": {dump(f["description"])}, "parameters": {{"type": "object", '
        f'"properties": {{{", ".join(props)}}}, "required": {dump(f["parameters"]["required"])}}}}}'
    )


def render_assistant(m: Message) -> str:
    calls = [
        "<tool_call>\n"
        + json.dumps({"name": c["function"]["name"], "arguments": c["function"]["arguments"]}, ensure_ascii=False)
        + "\n</tool_call>"
        for c in m.get("tool_calls", [])
    ]
    return "\n".join(filter(None, [m["content"], *calls]))


def segments(d: Dialogue, messages: list[Message] | None = None) -> list[tuple[str, bool]]:
    """The dialogue as (text, is it the assistant's) pieces; joined, they are what the chat template renders."""
    out: list[tuple[str, bool]] = []
    rest = list(d.messages if messages is None else messages)
    system = rest.pop(0)["content"] if rest and rest[0]["role"] == "system" else ""
    if d.tools:
        block = "# Tools\n<tools>\n" + "\n".join(render_tool(t) for t in d.tools) + "\n</tools>"
        system = f"{system}\n\n{block}" if system else block
    if system:
        out.append((f"<|im_start|>system\n{system}<|im_end|>\n", False))
    i = 0
    while i < len(rest):
        m = rest[i]
        if m["role"] == "assistant":
            out.append(("<|im_start|>assistant\n", False))
            out.append((render_assistant(m) + "<|im_end|>", True))
            out.append(("\n", False))
        elif m["role"] == "tool":
            answers = []
            while i < len(rest) and rest[i]["role"] == "tool":
                answers.append(f"<tool_response>\n{rest[i]['content']}\n</tool_response>")
                i += 1
            out.append(("<|im_start|>user\n" + "\n".join(answers) + "<|im_end|>\n", False))
            continue
        else:
            out.append((f"<|im_start|>user\n{m['content']}<|im_end|>\n", False))
        i += 1
    return out


def encode(tokenizer: Tokenizer, d: Dialogue) -> tuple[list[int], list[int]]:
    """(token ids, indices into the ids that the loss is taken at: every token of the assistant's)."""
    parts = segments(d)
    encoding = tokenizer.encode("".join(text for text, _ in parts), add_special_tokens=False)
    spans, at = [], 0
    for text, target in parts:
        if target:
            spans.append((at, at + len(text)))
        at += len(text)
    targets, span = [], 0
    for i, (start, _) in enumerate(encoding.offsets):
        while span < len(spans) and start >= spans[span][1]:
            span += 1
        if span < len(spans) and start >= spans[span][0]:
            targets.append(i)
    return encoding.ids, targets
