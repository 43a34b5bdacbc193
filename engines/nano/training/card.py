"""Writes the model card from the evaluation's own numbers."""

from __future__ import annotations

import json
from pathlib import Path

FLOORS = "Floors set beforehand: 97 % on known tools with new values, 90 % on tools never seen, 95 % on memory."


def table(scores: dict[str, tuple[int, int]]) -> str:
    """The scores as a Markdown table."""
    rows = [f"| {skill} | {100 * a / n:.1f} % | {n} |" for skill, (a, n) in scores.items()]
    return "\n".join(["| skill | exact | answers |", "|---|---|---|", *rows])


CARD = """---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
---

# Nano

Nano is the demonstration model inside kani_lite: a Llama-architecture model of {size:.1f} million parameters, trained
from scratch on dialogues that a script generates, so that a chat, a tool call and a test work with no download.

**What it does.** It greets, says who it is, remembers what you tell it about yourself, picks the right one of up to six
tools from their JSON schemas and fills in the arguments, tells the result, asks for a missing argument, and says
plainly when it has no tool for a request. It speaks simple English.

**What it does not do.** It knows nothing about the world, can't reason, write or calculate without a tool, and follows
no instruction in a system prompt. Use a real model for real work: `kani-lite chat Qwen/Qwen3-0.6B`.

## Evaluation

Share of exact answers, greedy decoding with no grammar, on generated dialogues whose forms of speech, names, values
and invented tools are disjoint from those of the training. {floors}

{table}

`python -m engines.nano.training.evaluate` prints this table.

## Training

`make train` makes this folder. This one has seen {tokens:.0f} million tokens in {steps} steps, in {minutes:.0f} minutes
on two CPU cores that had other work to do as well.{note} Format of the tools: `<tool_call>` with a JSON object of the
`name` and the `arguments`, as in Hermes and Qwen. Context: 2,048 tokens. Weights in bfloat16.
"""


def write_card(folder: Path, scores: dict[str, tuple[int, int]]) -> None:
    """Writes README.md from the scores, and from training.json, which `train` left there."""
    made = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    text = CARD.format(
        size=made["parameters"] / 1e6,
        floors=FLOORS,
        table=table(scores),
        tokens=made["tokens"] / 1e6,
        steps=made["steps"],
        minutes=made["minutes"],
        note=made.get("note", ""),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
