"""PACE's LLMModel and SamplingConfig on our runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from pydantic import ValidationError
from tiny import save_llama
from transformers import AutoModelForCausalLM, BatchEncoding, TextStreamer

from kani_lite.engines import GeneratorOutput, KVCacheType, LLMModel, SamplingConfig
from kani_lite.engines.pace import AutoTokenizer
from kani_lite.exceptions import EngineError, PromptError, PromptTooLong

TEXTS = ["the quick brown fox", "hello there, how are you? I am", "one"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("pace"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[LLMModel]:
    with LLMModel(folder, dtype=torch.float32, device="cpu") as made:
        yield made


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def encode(model: LLMModel, *texts: str) -> BatchEncoding:
    encoded: BatchEncoding = model.get_tokenizer()(list(texts), return_tensors="pt", padding="longest")
    return encoded


def test_the_example_of_paces_documentation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_name = folder
    torch_dtype = torch.bfloat16

    tokenizer = AutoTokenizer.from_pretrained(model_name)
    tokenizer.padding_side = "left"
    inputs_encoded = tokenizer.batch_encode_plus(["Input.."], return_tensors="pt", padding="longest")

    pace_model = LLMModel(model_name, dtype=torch_dtype)
    sampling_config = SamplingConfig(
        max_new_tokens=35,
        do_sample=False)  # fmt: skip
    pace_output = pace_model.generate(inputs_encoded, sampling_config)
    print(tokenizer.decode(pace_output.output_token_ids[0], skip_special_tokens=True))

    assert capsys.readouterr().out.startswith("Input..")
    assert pace_model.engine.model.dtype is torch.bfloat16
    assert pace_model.get_config().model_type == "llama"
    pace_model.close()


def test_a_padded_batch_is_what_each_prompt_gets_alone(model: LLMModel, plain: Any) -> None:
    config = SamplingConfig(max_new_tokens=12, ignore_eos=True)
    encoded = encode(model, *TEXTS)
    output = model.generate(encoded, config)
    assert isinstance(output, GeneratorOutput)
    assert output.output_token_ids.shape == (3, encoded.input_ids.shape[1] + 12)
    assert output.output_token_ids[:, : encoded.input_ids.shape[1]].equal(encoded.input_ids)
    for row, text in zip(output.output_token_ids, TEXTS, strict=True):
        alone = encode(model, text)
        assert row[-12:].equal(model.generate(alone, config).output_token_ids[0, -12:])
        expected = plain.generate(**alone, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert row[-12:].equal(expected[0, -12:])
    assert [one.finish_reason for one in output.generations] == ["length"] * 3
    assert output.decoded_text is output.probs is output.logprobs is output.input_logprobs is None


def test_replies_that_end_early_are_padded_on_the_right(model: LLMModel) -> None:
    free = model.generate(encode(model, *TEXTS), SamplingConfig(max_new_tokens=12, ignore_eos=True))
    length = encode(model, *TEXTS).input_ids.shape[1]
    end = int(free.output_token_ids[0, length + 3])
    config = SamplingConfig(max_new_tokens=12, eos_token_id=end, pad_token_id=7)
    output = model.generate(encode(model, *TEXTS), config)
    for row, one in zip(output.output_token_ids, output.generations, strict=True):
        assert row[length:].tolist() == one.ids + [7] * (output.output_token_ids.shape[1] - length - len(one.ids))
    assert len(output.generations[0].ids) <= 4
    assert output.generations[0].ids[-1] == end
    assert output.generations[0].finish_reason == "stop"


def test_padding_is_found_without_a_mask(model: LLMModel) -> None:
    encoded = encode(model, *TEXTS)
    config = SamplingConfig(max_new_tokens=5)
    assert model.get_tokenizer().pad_token_id not in model.engine.ends
    with_mask, without = model.generate(encoded, config), model.generate(encoded.input_ids, config)
    assert with_mask.output_token_ids.equal(without.output_token_ids)
    flat = encode(model, TEXTS[0]).input_ids[0]
    assert model.generate(flat, config).output_token_ids.shape[0] == 1


def test_text_without_special_tokens_and_stop_strings(model: LLMModel) -> None:
    free = model.generate(encode(model, *TEXTS), SamplingConfig(max_new_tokens=16, return_text=True))
    assert free.decoded_text is not None
    for text, row, prompt in zip(free.decoded_text, free.output_token_ids, TEXTS, strict=True):
        assert text == model.get_tokenizer().decode(row, skip_special_tokens=True)
        assert text.startswith(prompt)
    reply = free.decoded_text[1][len(TEXTS[1]) :]
    stop = next(reply[i : i + 2] for i in range(2, len(reply)) if reply[i : i + 2].isascii())
    config = SamplingConfig(max_new_tokens=16, return_text=True, stop_strings=stop)
    stopped = model.generate(encode(model, TEXTS[1]), config)
    assert stopped.decoded_text == [TEXTS[1] + reply[: reply.index(stop)]]
    assert stopped.generations[0].finish_reason == "stop"


def test_probabilities(model: LLMModel, plain: Any) -> None:
    config = SamplingConfig(
        max_new_tokens=6, ignore_eos=True, do_sample=True, seed=3, temperature=0.8, top_k=20, repetition_penalty=1.3,
        frequency_penalty=0.2, return_probs=True, return_logprobs=True, return_input_logprobs=True,
    )  # fmt: skip
    encoded = encode(model, *TEXTS)
    output = model.generate(encoded, config)
    assert output.probs is not None
    assert output.logprobs is not None
    assert output.input_logprobs is not None
    size = plain.config.vocab_size
    assert output.probs.shape == output.logprobs.shape == (3, 6, size)
    assert output.input_logprobs.shape == (*encoded.input_ids.shape, size)
    torch.testing.assert_close(output.probs, output.logprobs.exp())
    torch.testing.assert_close(output.probs.sum(-1), torch.ones(3, 6))
    assert ((output.probs > 0).sum(-1) <= 20).all()
    for row in range(3):
        keep = encoded.attention_mask[row].bool()
        with torch.no_grad():
            expected = plain(encoded.input_ids[row][keep][None]).logits[0].log_softmax(-1)
        torch.testing.assert_close(output.input_logprobs[row][keep], expected, atol=1e-4, rtol=1e-4)
        assert output.input_logprobs[row][~keep].isnan().all()
        for place, token in enumerate(output.generations[row].ids):
            assert output.probs[row, place, token] > 0
    again = model.generate(encoded, config)
    assert again.output_token_ids.equal(output.output_token_ids)


def test_probabilities_of_the_likeliest_token_and_of_padding(model: LLMModel) -> None:
    encoded = encode(model, TEXTS[0], TEXTS[0])
    free = model.generate(encoded, SamplingConfig(max_new_tokens=8, return_probs=True))
    assert free.probs is not None
    assert free.probs.argmax(-1).equal(free.output_token_ids[:, -free.probs.shape[1] :])
    drawn = SamplingConfig(max_new_tokens=30, do_sample=True, temperature=3.0, seed=1, return_probs=True)
    output = model.generate(encoded, drawn)
    assert output.probs is not None
    lengths = [len(one.ids) for one in output.generations]
    assert output.generations[0].ids != output.generations[1].ids, "each prompt has a seed of its own"
    for row, length in zip(output.probs, lengths, strict=True):
        assert not row[:length].isnan().any()
        assert row[length:].isnan().all()


def test_a_streamer_gets_what_is_returned(model: LLMModel, capsys: pytest.CaptureFixture[str]) -> None:
    streamer = TextStreamer(model.get_tokenizer(), skip_prompt=True, skip_special_tokens=True)
    config = SamplingConfig(max_new_tokens=10, return_text=True)
    output = model.generate(encode(model, TEXTS[0]), config, streamer)
    assert output.decoded_text is not None
    assert TEXTS[0] + capsys.readouterr().out.rstrip("\n") == output.decoded_text[0].rstrip("\n")
    with pytest.raises(ValueError, match="3 prompts"):
        model.generate(encode(model, *TEXTS), config, streamer)


def test_limits_of_length(model: LLMModel) -> None:
    encoded = encode(model, TEXTS[0])
    assert len(model.generate(encoded, SamplingConfig(ignore_eos=True)).generations[0].ids) == 20
    both = SamplingConfig(min_new_tokens=30, max_new_tokens=4)
    assert len(model.generate(encoded, both).generations[0].ids) == 4
    with pytest.raises(PromptTooLong):
        model.generate(torch.full((1, 2048), 9))


class OfModel:
    """A generation_config."""

    do_sample = True
    temperature = 0.6
    top_k = 40
    top_p = None
    max_new_tokens = 7
    num_beams = 4


def test_only_what_is_given_overrides_the_models_values() -> None:
    merged = SamplingConfig(top_k=5, temperature=None, min_p=None).over(OfModel())
    assert (merged.do_sample, merged.temperature, merged.top_k, merged.max_new_tokens) == (True, 0.6, 5, 7)
    assert SamplingConfig().over(OfModel()).params([2]).temperature == 0.6
    assert SamplingConfig(do_sample=False).over(OfModel()).params([2]).greedy
    assert SamplingConfig(temperature=1e-6, do_sample=True).over(OfModel()).params([2]).greedy


def test_what_a_config_is_in_our_words() -> None:
    config = SamplingConfig(
        do_sample=True, temperature=0.5, top_k=0, top_p=0, min_new_tokens=2, stop_strings="x", random_seed=4,
        eos_token_id=torch.tensor([5]), frequency_penalty=0.1,
    )  # type: ignore[call-arg]  # random_seed: PACE's examples have it  # fmt: skip
    params = config.params([2])
    assert (params.temperature, params.top_k, params.seed, params.stop) == (0.5, None, 4, ["x"])
    assert (params.eos_token_ids, params.min_tokens, params.max_tokens) == ([2, 5], 2, 20)
    assert 0 < params.top_p < 1e-6
    assert params.logprobs is None
    changed = SamplingConfig()
    changed.top_k = 3
    assert changed.over(OfModel()).top_k == 3


@pytest.mark.parametrize(
    "bad", [{"max_new_tokens": 0}, {"top_k": -1}, {"temperature": -1}, {"repetition_penalty": 0}, {"max_length": 5}]
)
def test_values_out_of_range(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(bad))):
        SamplingConfig(**bad)


def test_beam_search_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="num_beams=4"):
        SamplingConfig(num_beams=4)
    assert SamplingConfig(num_beams=1, early_stopping=False).params([1]).greedy


def test_prompts_of_wrong_types_and_shapes(model: LLMModel) -> None:
    for prompt in ("text", [1, 2], None, {"input_ids": [[1]]}, {"text": 1}):
        with pytest.raises(NotImplementedError, match="tensor of ids"):
            model.generate(prompt)  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(NotImplementedError, match="SamplingConfig, not dict"):
        model.generate(torch.tensor([[1]]), {"max_new_tokens": 3})  # type: ignore[arg-type]  # the same
    with pytest.raises(TypeError, match="float32"):
        model.generate(torch.ones(1, 3))
    for shape in ((1, 2, 3), (), (0, 3)):
        with pytest.raises(ValueError, match="batch, tokens"):
            model.generate(torch.ones(shape, dtype=torch.long))
    with pytest.raises(PromptError, match="empty"):
        model.generate(torch.ones((1, 0), dtype=torch.long))
    with pytest.raises(PromptError, match="1000000: this model knows 0 to"):
        model.generate(torch.tensor([[1, 10**6]]))
    ids = torch.tensor([[5, 6, 7]])
    for mask in ([[1, 1, 0]], [[1, 0, 1]]):
        with pytest.raises(ValueError, match="left"):
            model.generate({"input_ids": ids, "attention_mask": torch.tensor(mask)})
    with pytest.raises(ValueError, match="attention mask is"):
        model.generate({"input_ids": ids, "attention_mask": torch.tensor([[1, 1]])})
    assert model.generate(ids).output_token_ids.shape[1] > 3


def test_bin_weights_and_a_separate_tokenizer(folder: Path, plain: Any, tmp_path: Path) -> None:
    weights, words = tmp_path / "weights", tmp_path / "words"
    plain.config.save_pretrained(weights)
    torch.save(plain.state_dict(), weights / "pytorch_model.bin")
    AutoTokenizer.from_pretrained(folder).save_pretrained(words)
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        LLMModel(weights)
    with LLMModel(weights, words, torch.float32, device="cpu") as model:
        assert model.get_tokenizer().padding_side == "left"
        encoded = encode(model, "hello there")
        expected = plain.generate(**encoded, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)
        found = model.generate(encoded, SamplingConfig(max_new_tokens=9, ignore_eos=True)).output_token_ids
        assert found.equal(expected)


def test_what_cannot_be_loaded(folder: Path, tmp_path: Path) -> None:
    for path in ("/no/such/model", tmp_path):
        with pytest.raises(FileNotFoundError):
            LLMModel(path)
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        LLMModel(folder, "/no/such/tokenizer")
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        LLMModel(folder, tokenizer_path=tmp_path)
    for dtype in ("invalid_dtype", torch.int8, None):
        with pytest.raises(TypeError, match="bfloat16"):
            LLMModel(folder, dtype=dtype)  # type: ignore[arg-type]  # the point of the test
    for config in ({"spec_config": object()}, {"opconfig": {}}):
        with pytest.raises(NotImplementedError, match="aren't supported"):
            LLMModel(folder, **config)
    with pytest.raises(EngineError, match="lots"):
        LLMModel(folder, kv_cache_type="lots", device="cpu")


@pytest.mark.parametrize("kind", [*KVCacheType, "BMC", "SLAB_POOL"])
def test_kinds_of_cache(folder: Path, model: LLMModel, kind: str) -> None:
    encoded, config = encode(model, *TEXTS), SamplingConfig(max_new_tokens=20)
    with LLMModel(folder, dtype=torch.float32, kv_cache_type=kind, kv_cache_memory_gb=0.01, device="cpu") as other:
        assert other.generate(encoded, config).output_token_ids.equal(model.generate(encoded, config).output_token_ids)


def test_closing(folder: Path) -> None:
    model = LLMModel(folder, dtype="auto", device="cpu")
    thread = model.engine._worker.thread

    async def in_a_notebook() -> None:
        model.close()

    anyio.run(in_a_notebook)
    model.close()
    assert not thread.is_alive()
    with pytest.raises(EngineError, match="closed"):
        model.generate(torch.tensor([[5]]))
    with pytest.raises(EngineError, match="HuggingEngine"):
        anyio.run(model.engine.predict, [])
