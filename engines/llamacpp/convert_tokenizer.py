"""A tokenizer.json as GGUF has it: the tokens, how they merge, and which of them are special."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kani_lite.exceptions import EngineError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ENDS_KEY = "kani_lite.eos_token_ids"
"""The ids that end a reply, as JSON: GGUF itself has keys for one or two."""

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORTENED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_PRE_TOKENIZERS = {_SHORTENED + _WORDS % "": "qwen2", _SHORTENED + _WORDS % "{1,3}": "llama-bpe"}
_UNKNOWN_PRE = "gpt-2"  # llama.cpp refuses a name that it doesn't know
_SPACE = "\u2581"


def add_tokenizer(writer: Any, folder: Path, config: Mapping[str, Any], vocabulary: int) -> None:
    """Writes the tokenizer's keys. `vocabulary`: rows of the embedding.

    Where llama.cpp splits text in another way than this tokenizer, the tokenizer.json goes into the file as it is,
    under the key that GGUF has for it. Raises EngineError for a tokenizer that is no byte-pair encoding.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise EngineError(f"The folder {str(folder)!r} has no tokenizer.json: save its tokenizer with transformers 5.")
    text = path.read_text("utf-8")
    tokenizer = json.loads(text)
    model = tokenizer["model"]
    if model.get("type", "BPE") != "BPE" or not model.get("merges"):
        raise EngineError(
            f"The tokenizer of {str(folder)!r} is of the type {model.get('type')!r}, or has no merges: GGUF files are "
            "made here of models with byte-pair encoding (BPE)."
        )
    tokens, types = _tokens(tokenizer, vocabulary)
    exact = False
    if _has(tokenizer, "ByteLevel"):
        pre = _pre_tokenizer(tokenizer)
        exact = pre is not None and tokenizer.get("normalizer") is None
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre or _UNKNOWN_PRE)
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(tokens, model["merges"]))
        writer.add_add_space_prefix(_SPACE in json.dumps(tokenizer.get("normalizer"), ensure_ascii=False))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if not exact:
        writer.add_string("tokenizer.huggingface.json", text)
    _add_special(writer, folder, config, {token: i for i, token in enumerate(tokens)})


def _tokens(tokenizer: Mapping[str, Any], vocabulary: int) -> tuple[list[str], list[int]]:
    """(the text, the type) of each id."""
    model = tokenizer["model"]
    by_id: dict[int, str] = {number: token for token, number in model["vocab"].items()}
    kinds = dict.fromkeys(by_id, NORMAL)
    if model.get("byte_fallback"):
        for number, token in by_id.items():
            if len(token) == 6 and token.startswith("<0x"):
                kinds[number] = BYTE
    if model.get("unk_token") in model["vocab"]:
        kinds[model["vocab"][model["unk_token"]]] = UNKNOWN
    for added in tokenizer.get("added_tokens", ()):
        by_id[added["id"]] = added["content"]
        if kinds.get(added["id"]) != UNKNOWN:
            kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    if (most := max(by_id) + 1) > vocabulary:
        raise EngineError(f"The tokenizer has {most} tokens, but the model's embedding {vocabulary}: they don't fit.")
    return [by_id.get(i, f"[PAD{i}]") for i in range(vocabulary)], [kinds.get(i, UNUSED) for i in range(vocabulary)]


def _has(tokenizer: Mapping[str, Any], kind: str) -> bool:
    return f'"{kind}"' in json.dumps([tokenizer.get("pre_tokenizer"), tokenizer.get("decoder")])


def _pre_tokenizer(tokenizer: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for how text is split before merging; None if it has none."""
    given = tokenizer.get("pre_tokenizer") or {}
    parts = given.get("pretokenizers", [given])
    if any(part.get("add_prefix_space") for part in parts):
        return None
    if len(parts) == 1 and parts[0].get("type") == "ByteLevel":
        return "gpt-2" if parts[0].get("use_regex", True) else None
    kinds = [(part.get("type"), part.get("behavior"), part.get("use_regex")) for part in parts]
    if kinds != [("Split", "Isolated", None), ("ByteLevel", None, False)] or parts[0].get("invert"):
        return None
    name = _PRE_TOKENIZERS.get((parts[0]["pattern"] or {}).get("Regex", ""))
    # llama.cpp takes whole words that are tokens before it merges, for this name alone
    ignores = bool(tokenizer["model"].get("ignore_merges"))
    return name if ignores == (name == "llama-bpe") else None


def _scores(tokens: Sequence[str], merges: Sequence[str | Sequence[str]]) -> list[float]:
    """What merges earlier scores higher, as in the sentencepiece model that such merges were made of."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        whole = merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)
        ranks.setdefault(whole, rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _add_special(writer: Any, folder: Path, config: Mapping[str, Any], ids: Mapping[str, int]) -> None:
    settings, generation = _json(folder / "tokenizer_config.json"), _json(folder / "generation_config.json")
    ends = _as_list(generation.get("eos_token_id", config.get("eos_token_id")))
    for name in ("bos", "eos", "unk", "pad"):
        token = settings.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        given = _as_list(config.get(f"{name}_token_id"))
        number = ids.get(text) if isinstance(text, str) else None
        number = number if number is not None else next(iter(given), None)
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
            ends = [number, *(each for each in ends if each != number)] if name == "eos" else ends
    if ends:
        writer.add_string(ENDS_KEY, json.dumps(ends))
    writer.add_add_bos_token(bool(settings.get("add_bos_token", False)))
    writer.add_add_eos_token(False)
    template = folder / "chat_template.jinja"
    written = template.read_text("utf-8") if template.is_file() else settings.get("chat_template")
    if written:
        writer.add_chat_template(written)


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def _as_list(value: Any) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)
