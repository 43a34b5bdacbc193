"""How far quantised weights stray from the model's own. For benchmarks/four_bit.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer

from kani_lite.engines.nano import WEIGHTS
from kani_lite.engines.nano.training.corpus import encode
from kani_lite.engines.nano.training.evaluate import evaluate, suite

_WINDOW = 512  # tokens of a text that are read at once
_DIALOGUES_SEED = 30_000  # the evaluation's own seed is 20,000


@dataclass(frozen=True)
class Passage:
    """`scored`: indices into `ids` of the tokens that are to be foretold from those before them."""

    ids: list[int]
    scored: list[int]


def passages(embedded: bool, texts: Sequence[str], tokenizer: Any, tokens: int) -> list[Passage]:
    """What quality is measured on, `tokens` of it at most: pieces of texts; or, for the embedded model without texts,
    dialogues that it never saw, of which its own answers count."""
    if embedded and not texts:
        return list(_dialogues(tokens))
    ids: list[int] = tokenizer.encode("\n\n".join(texts), add_special_tokens=False)[:tokens]
    pieces = [ids[start : start + _WINDOW] for start in range(0, len(ids), _WINDOW)]
    return [Passage(piece, list(range(1, len(piece)))) for piece in pieces if len(piece) > 1]


def _dialogues(tokens: int) -> Iterator[Passage]:
    tokenizer = Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))
    for _, dialogue in suite(_DIALOGUES_SEED, tokens // 8 + 1):  # more than enough
        ids, targets = encode(tokenizer, dialogue)
        if not (scored := targets[:tokens]):
            return
        yield Passage(ids, scored)
        tokens -= len(scored)


@torch.inference_mode()
def log_probs(model: Any, passage: Passage) -> torch.Tensor:
    """(scored tokens, vocabulary) float32 on the CPU: what the model gives each token at these places."""
    logits = model(torch.tensor([passage.ids], device=model.device), use_cache=False).logits[0]
    before = torch.tensor(passage.scored, device=logits.device) - 1
    rows: torch.Tensor = logits[before].float().log_softmax(-1).cpu()
    return rows


def write_reference(model: Any, chosen: list[Passage], folder: Path) -> None:
    """Keeps the distributions that rows are compared with; a file each, since together they may be large."""
    for number, passage in enumerate(chosen):
        torch.save(log_probs(model, passage), folder / f"{number}.pt")


def against_reference(model: Any, chosen: list[Passage], folder: Path) -> dict[str, float]:
    """`perplexity`; `divergence`: the mean Kullback-Leibler divergence of the model's next-token distributions from the
    reference's, in nats; `same`: the share of places where both have the same first choice."""
    surprise = divergence = 0.0
    same = places = 0
    for number, passage in enumerate(chosen):
        reference = torch.load(folder / f"{number}.pt", weights_only=True)
        found = log_probs(model, passage)
        wanted = torch.tensor([passage.ids[i] for i in passage.scored])
        surprise -= float(found.gather(1, wanted[:, None]).double().sum())
        divergence += float((reference.exp() * (reference - found)).sum(-1).double().sum())
        same += int((reference.argmax(-1) == found.argmax(-1)).sum())
        places += len(wanted)
    mean = torch.tensor(surprise / places, dtype=torch.float64)
    return {"perplexity": float(mean.exp()), "divergence": divergence / places, "same": same / places}


def exact_answers(model: Any, dialogues: int) -> tuple[int, int]:
    """(exact answers, answers) of the embedded model's evaluation, over all of its skills."""

    def on_its_device(ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=model(ids.to(model.device), use_cache=False).logits.cpu())

    tokenizer = Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))
    model_there: Any = on_its_device
    scores = evaluate(model_there, tokenizer, count=dialogues).values()
    return sum(right for right, _ in scores), sum(count for _, count in scores)
