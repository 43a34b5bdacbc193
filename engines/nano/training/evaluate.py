"""Share of exact answers per skill, on dialogues whose forms, words and tools training never saw.

An answer counts when every token of it is the model's first choice, given the tokens before it: that is the same as
greedy decoding giving exactly that answer, at a fraction of the cost.

    python -m engines.nano.training.evaluate [FOLDER] [--dialogues 1500] [--card] [--show 20]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from .card import table, write_card
from .corpus import encode
from .dialogues import Dialogue, Writer

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


def suite(seed: int, count: int) -> list[tuple[str, Dialogue]]:
    """(kind of the tools, dialogue) pairs; kinds: known, held out (natural), invented, none."""
    writer = Writer(seed, evaluation=True)
    out = []
    for i in range(count):
        kind = ("known", "held out", "invented", "none")[i % 4]
        tools = writer.tool_set(kind) if kind != "none" else []
        d = writer.start(tools)
        for _ in range(writer.rng.randint(1, 5)):
            roll = writer.rng.random()
            if tools and roll < 0.6:
                writer.use_tool(d, tools, "tool")
            elif roll < 0.68:
                writer.unknown(d)
            elif roll < 0.84:
                writer.tell(d)
                if writer.rng.random() < 0.7:
                    writer.recall(d)
            elif roll < 0.9:
                writer.recall(d)
            else:
                writer.rng.choice([writer.chat, writer.chat, writer.statement, writer.list_tools, writer.recall_all])(d)
        if d.turns:
            out.append((kind, d))
    return out


@torch.inference_mode()
def right_tokens(model: LlamaForCausalLM, ids: list[int]) -> list[bool]:
    """For each position, whether the token there is the model's first choice."""
    logits = model(torch.tensor([ids])).logits[0]
    return [True, *(logits[:-1].argmax(-1) == torch.tensor(ids[1:])).tolist()]


def evaluate(
    model: LlamaForCausalLM, tokenizer: Tokenizer, seed: int = 20_000, count: int = 1500, show: int = 0
) -> dict[str, tuple[int, int]]:
    """Per skill, (exact answers, answers)."""
    score: dict[str, list[bool]] = defaultdict(list)
    names = {"known": "known tools", "held out": "unseen tools (natural)", "invented": "unseen tools (invented)"}
    for kind, d in suite(seed, count):
        ids, targets = encode(tokenizer, d)
        right = right_tokens(model, ids)
        answers = [[]] if not targets else [[targets[0]]]
        for a, b in pairwise(targets):
            if b != a + 1:
                answers.append([])
            answers[-1].append(b)
        for turn, span in zip(d.turns, answers, strict=True):
            exact = all(right[i] for i in span)
            skill = names[kind] if turn.skill == "tool" else turn.skill
            score[skill].append(exact)
            if not exact and show > 0:
                show -= 1
                wrong = next(i for i in span if not right[i])
                print(
                    f"[{skill}] {tokenizer.decode(ids[max(0, span[0] - 40) : span[-1] + 1], skip_special_tokens=False)}"
                )
                print(f"    first wrong token: {tokenizer.decode([ids[wrong]])!r} at {wrong - span[0]}\n")
    return {k: (sum(v), len(v)) for k, v in sorted(score.items())}


def load(folder: Path) -> tuple[LlamaForCausalLM, Tokenizer]:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=WEIGHTS)
    parser.add_argument("--dialogues", type=int, default=1500)
    parser.add_argument("--card", action="store_true", help="write the scores into the folder's model card")
    parser.add_argument("--show", type=int, default=0, help="print so many wrong answers")
    args = parser.parse_args()
    model, tokenizer = load(args.folder)
    scores = evaluate(model, tokenizer, count=args.dialogues, show=args.show)
    print(table(scores))
    if args.card:
        write_card(args.folder, scores)


if __name__ == "__main__":
    main()
