"""Models of each family, made here with random weights and converted: llama.cpp says what transformers says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from tiny import CHATML, chatml_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from kani_lite.engines.llamacpp import LlamaCppEngine
from kani_lite.engines.llamacpp.convert import convert
from kani_lite.engines.llamacpp.library import Model
from kani_lite.engines.llamacpp.options import model_params, read_options
from kani_lite.engines.llamacpp.tokenizer import JsonTokenizer, VocabTokenizer

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "<|im_start|>user\nhello there, how are you?<|im_end|>\n<|im_start|>assistant\n",
    "I'm 1234 years   old,\n\n  and you're not! Grüße aus 東京 🙂 <tool_call>{}</tool_call>",
    " a",
    "a  b\t\tc\r\nd",
]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied-with-biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama-long": ("llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 512}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}),
    "llama-wide-heads": ("llama", {"head_dim": 32}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
}


def save(folder: Path, kind: str, more: dict[str, Any], tokenizer: Any = None) -> Any:
    """A model with random weights, biases and norms; returns it."""
    tokenizer = tokenizer or chatml_tokenizer()
    tokenizer.save_pretrained(folder)
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(values | more))).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight) * (0.1 if "norm" in name else 0.5))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", KINDS)
def test_logprobs_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    kind, more = KINDS[name]
    model = save(tmp_path / "model", kind, more)
    path = convert(tmp_path / "model", tmp_path / "model.gguf", type="f32")
    engine = LlamaCppEngine(model_path=path, model_load_kwargs={"type_k": "f32", "type_v": "f32"}, threads=1)
    ids = engine.encode("".join(TEXTS) * 2)[:200]
    with torch.inference_mode():
        expected = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    done = engine.generate_now(ids, temperature=0.0, max_tokens=1, prompt_logprobs=1, logprobs=1)
    anyio.run(engine.close)
    found = [each.logprob for each in done.prompt_logprobs[1:] if each is not None]
    assert found == pytest.approx([expected[i, ids[i + 1]].item() for i in range(len(ids) - 1)], abs=2e-3)
    assert done.ids == [int(expected[-1].argmax())]


def vocabulary(path: Path) -> Model:
    return Model(str(path), model_params(read_options({}, 1)))


def split_tokenizer(digits: str, whole_words: bool) -> Any:
    """As those of Qwen 2 and Llama 3, which split text by a pattern before merging."""
    pattern = (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tok = Tokenizer(models.BPE(ignore_merges=whole_words))
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tok.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator([*TEXTS, "in 1234 and 123 and 12 years"] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>")
    fast.chat_template = CHATML
    return fast


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "gpt-2": chatml_tokenizer,
    "qwen2": lambda: split_tokenizer("", False),
    "llama-bpe": lambda: split_tokenizer("{1,3}", True),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_llamacpp_knows_is_its_own(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]()
    save(tmp_path / "model", "llama", {}, tokenizer)
    model = vocabulary(convert(tmp_path / "model", tmp_path / "model.gguf"))
    assert model.metadata["tokenizer.ggml.pre"] == name
    assert "tokenizer.huggingface.json" not in model.metadata
    ours = VocabTokenizer(model)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == text
        split = [ours.decode(ids[:place]) for place in range(len(ids))]
        assert all(text.startswith(part.rstrip("\ufffd")) for part in split)


def sentencepiece_like() -> Any:
    """Tokens that begin with the mark of a space, and bytes for what has no token, as in Llama 2."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tok.decoder = decoders.Sequence(parts)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=special, show_progress=False)
    tok.train_from_iterator(TEXTS[:1] * 8 + ["hello there, how are you? I am fine."] * 8, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = CHATML
    return fast


def test_a_tokenizer_that_llamacpp_does_not_know_comes_with_the_file(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like()
    save(tmp_path / "model", "llama", {}, tokenizer)
    model = vocabulary(convert(tmp_path / "model", tmp_path / "model.gguf"))
    ours = JsonTokenizer(model.metadata["tokenizer.huggingface.json"])
    for text in TEXTS:
        assert ours.encode(text) == tokenizer.encode(text, add_special_tokens=False)
    # programs that don't read it have the pieces all the same
    assert model.text_of(1) == "<s>"
    assert model.special("bos") == 1
    assert model.special("eos") == 2
    assert model.tokenize(b"the quick brown fox") == tokenizer.encode("the quick brown fox", add_special_tokens=False)


def test_a_template_writes_the_first_token_once(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like()
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    save(tmp_path / "model", "llama", {}, tokenizer)
    engine = LlamaCppEngine(model_path=convert(tmp_path / "model", tmp_path / "model.gguf"), threads=1)
    from kani_lite import ChatMessage

    messages = [ChatMessage.user("hello")]
    assert engine.encode(engine.build_prompt(messages)).count(1) == 1
    assert engine.prompt_len(messages) == len(engine.encode(engine.build_prompt(messages)))
    anyio.run(engine.close)
