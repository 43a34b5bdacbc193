"""Loading: what goes wrong is said in one sentence; what is quantised really is."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import bitsandbytes
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as hf_logging

from kani_lite.engines import HuggingEngine, LlamaEngine
from kani_lite.engines.huggingface.loading import Source, context_length
from kani_lite.engines.quantization import Int4Linear, Int8Linear
from kani_lite.exceptions import EngineError, MissingModelDependencies, PromptError
from kani_lite.messages import ChatMessage, ChatRole

HELLO = [ChatMessage.user("hello there")]


@pytest.fixture
def copy(model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


def refusal(folder: Any, **kwargs: Any) -> str:
    with pytest.raises(EngineError) as caught:
        HuggingEngine(folder, device="cpu", **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    assert len(text.replace(str(folder), "")) < 280
    return text


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_no_such_folder(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere")
    assert "nowhere/at/all" in refusal("nowhere/at/all")
    assert "is a file" in refusal(Path(__file__))
    assert "empty" in refusal("")


def test_no_config_or_a_broken_one(copy: Path) -> None:
    (copy / "config.json").write_text('{"model_type": ')
    assert "config.json" in refusal(copy)
    (copy / "config.json").write_text("[]")
    assert "model_type" in refusal(copy)
    (copy / "config.json").unlink()
    assert "no config.json" in refusal(copy)


def test_an_unknown_architecture(copy: Path) -> None:
    edit_config(copy, model_type="no_such_model")
    assert "'no_such_model'" in refusal(copy)
    edit_config(copy, auto_map={"AutoModelForCausalLM": "evil.Evil"})
    assert "trust_remote_code" in refusal(copy)


def test_weights_missing_cut_or_incomplete(copy: Path) -> None:
    path = copy / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert str(copy) in refusal(copy)
    path.write_bytes(whole)
    edit_config(copy, num_hidden_layers=3)
    assert "lack" in refusal(copy)
    path.unlink()
    assert "no weights" in refusal(copy)


def test_no_tokenizer(copy: Path) -> None:
    for path in copy.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in refusal(copy)


def test_no_chat_template(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    assert "chat template" in refusal(copy)


def test_an_unknown_context_length(copy: Path) -> None:
    edit_config(copy, model_type="bloom", max_position_embeddings=None)
    config, tokenizer = AutoConfig.from_pretrained(copy), AutoTokenizer.from_pretrained(copy)
    with pytest.raises(EngineError, match="max_context_size"):
        context_length(config, tokenizer, Source(str(copy), True, {}))


def test_a_hub_name_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal("nobody/no-such-model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def answer(error: Exception) -> None:
        def model_info(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)

    answer(ConnectionError("no route"))
    assert "can't be reached" in refusal("nobody/no-such-model")
    response: Any = SimpleNamespace(headers={}, request=None)  # all that the error reads of it
    answer(RepositoryNotFoundError("404", response=response))
    assert "no folder or hub model 'nobody/no-such-model'" in refusal("nobody/no-such-model")
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert "no name" in refusal("not a name!")


async def test_a_model_that_was_fetched_needs_no_network(load: Callable[..., Any], hub_cache: Path) -> None:
    engine = await load(HuggingEngine, "someone/tiny", max_tokens=2, model_load_kwargs={"cache_dir": str(hub_cache)},
                        tokenizer_kwargs={"cache_dir": str(hub_cache)})  # fmt: skip
    assert engine.model_id == "someone/tiny"
    assert (await engine.predict(HELLO)).completion_tokens


def test_arguments_are_checked_before_anything_loads(tmp_path: Path) -> None:
    assert "'3bit'" in refusal(tmp_path, quantize="3bit")
    assert "max_context_size=0" in refusal(tmp_path, max_context_size=0)
    assert "Several" in refusal(tmp_path, model_load_kwargs={"load_in_4bit": True, "load_in_8bit": True})
    with pytest.raises(TypeError, match="num_beams"):
        HuggingEngine(tmp_path, num_beams=4)


def test_a_missing_package_names_the_extra(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingModelDependencies, match=r"kani-lite\[bitsandbytes\]"):
        HuggingEngine(model_dir, model_load_kwargs={"load_in_4bit": True})


def test_torch_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "kani_lite.engines.huggingface")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingModelDependencies, match=r"kani-lite\[huggingface\]"):
        __import__("kani_lite.engines.huggingface")


def test_loading_is_silent_and_leaves_logging_alone(
    model_dir: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity(logging.INFO)
    hf_logging.enable_progress_bar()
    try:
        capfd.readouterr()
        HuggingEngine(model_dir, device="cpu")
        assert hf_logging.get_verbosity() == logging.INFO
        assert hf_logging.is_progress_bar_enabled()
    finally:
        hf_logging.set_verbosity(level)
    out = capfd.readouterr()
    assert out.out + out.err == ""


def test_weights_keep_the_dtype_they_were_saved_in(copy: Path) -> None:
    AutoModelForCausalLM.from_pretrained(copy, dtype=torch.bfloat16).save_pretrained(copy)
    assert HuggingEngine(copy, device="cpu").model.dtype is torch.bfloat16
    asked = HuggingEngine(copy, device="cpu", model_load_kwargs={"torch_dtype": torch.float32})
    assert asked.model.dtype is torch.float32


@pytest.mark.parametrize(
    "how",
    [
        {"model_load_kwargs": {"load_in_4bit": True}},
        {"model_load_kwargs": {"load_in_8bit": True}},
        {"quantize": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")},
    ],
    ids=["load_in_4bit", "load_in_8bit", "config"],
)
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")  # bitsandbytes says that it casts its inputs
async def test_bitsandbytes_really_quantises(load: Callable[..., Any], how: dict[str, Any]) -> None:
    engine = await load(temperature=0, max_tokens=4, **how)
    eight = "load_in_8bit" in how.get("model_load_kwargs", {})
    kind = bitsandbytes.nn.Linear8bitLt if eight else bitsandbytes.nn.Linear4bit
    layer = engine.model.model.layers[0].mlp.up_proj
    assert isinstance(layer, kind)
    assert layer.weight.dtype is (torch.int8 if eight else torch.uint8)
    if not eight:
        assert layer.weight.quant_state.quant_type == "nf4"
    assert 1 <= ((await engine.predict(HELLO)).completion_tokens or 0) <= 4


@pytest.mark.parametrize("double", [False, True], ids=["nf4", "double quantisation"])
async def test_bitsandbytes_saved_and_loaded_again(load: Callable[..., Any], tmp_path: Path, double: bool) -> None:
    """As transformers' own save_pretrained writes it, and from an engine that has run: the folder needs no options."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
    engine = await load(temperature=0, max_tokens=6, quantize=config)
    await anyio.to_thread.run_sync(engine.model.save_pretrained, tmp_path / "theirs")
    await anyio.to_thread.run_sync(engine.tokenizer.save_pretrained, tmp_path / "theirs")
    said = (await engine.predict(HELLO)).message.text
    await anyio.to_thread.run_sync(engine.save_quantized, tmp_path / "ours")
    for folder in ("ours", "theirs"):
        again = await load(folder=tmp_path / folder, temperature=0, max_tokens=6)
        assert isinstance(again.model.model.layers[0].mlp.up_proj, bitsandbytes.nn.Linear4bit)
        assert (await again.predict(HELLO)).message.text == said
        saved = load_file(tmp_path / folder / "model.safetensors")
        assert any("nested_absmax" in key for key in saved) is double
    other = [ChatMessage.user("one two three")]  # saving left the engine's own weights as they were
    assert (await engine.predict(other)).message.text == (await again.predict(other)).message.text


@pytest.mark.parametrize(("bits", "kind"), [("4bit", Int4Linear), ("8bit", Int8Linear)])
async def test_on_a_cpu_quantize_takes_torchs_own_kernels(
    load: Callable[..., Any], tmp_path: Path, bits: str, kind: type, save: Callable[..., Path]
) -> None:
    folder = await anyio.to_thread.run_sync(lambda: save(tmp_path / "model", hidden_size=128, intermediate_size=256))
    engine = await load(folder=folder, temperature=0, max_tokens=6, quantize=bits)
    assert isinstance(engine.model.model.layers[0].mlp.up_proj, kind)
    said = (await engine.predict(HELLO)).message.text
    await anyio.to_thread.run_sync(engine.save_quantized, tmp_path / "saved")
    again = await load(folder=tmp_path / "saved", temperature=0, max_tokens=6)
    assert isinstance(again.model.model.layers[0].mlp.up_proj, kind)
    assert (await again.predict(HELLO)).message.text == said
    with pytest.raises(EngineError, match="not empty"):
        await anyio.to_thread.run_sync(engine.save_quantized, tmp_path / "saved")


class Plain(HuggingEngine):
    """The seed document's way: these two methods are all that a model's own format needs."""

    def build_prompt(self, messages: Sequence[ChatMessage], functions: Any = None) -> str:
        return "".join(f"{m.role.value}: {m.text}\n" for m in messages) + "assistant:"

    def message_len(self, message: ChatMessage) -> int:
        return len(self.encode(message.text or "")) + 3


@pytest.fixture
def hub_cache(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the hub's client leaves on the disk; asking the hub itself fails."""
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(model_dir, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    return tmp_path


@pytest.fixture
def bare(copy: Path) -> Path:
    (copy / "chat_template.jinja").unlink()
    return copy


async def test_overriding_the_prompt(load: Callable[..., Any], bare: Path) -> None:
    engine = await load(Plain, bare, max_tokens=3)
    assert engine.prompt_len(HELLO) == len(engine.encode("user: hello there\nassistant:"))
    assert engine.message_len(HELLO[0]) == len(engine.encode("hello there")) + 3
    assert (await engine.predict(HELLO)).completion_tokens


async def test_a_prompt_of_ids(load: Callable[..., Any]) -> None:
    class Ids(HuggingEngine):
        def build_prompt(self, messages: Sequence[ChatMessage], functions: Any = None) -> torch.Tensor:
            return torch.tensor([self.encode(messages[-1].text or "")])

    engine = await load(Ids, max_tokens=3)
    assert (await engine.predict(HELLO)).prompt_tokens == len(engine.encode("hello there"))


async def test_message_len_is_close(load: Callable[..., Any]) -> None:
    engine = await load()
    chat = [
        ChatMessage.system("be good"),
        ChatMessage.user("hello there"),
        ChatMessage.assistant("hello"),
        ChatMessage.user("fox"),
    ]
    opening = len(engine.encode("<|im_start|>assistant\n"))
    assert abs(engine.prompt_len(chat) - opening - sum(map(engine.message_len, chat))) <= 3


async def test_llama_2(load: Callable[..., Any]) -> None:
    engine = await load(LlamaEngine, strict=True, max_tokens=3)
    engine.tokenizer.bos_token, engine.tokenizer.eos_token = "<|endoftext|>", "<|im_end|>"
    s, u, a = (ChatMessage.system("S"), ChatMessage.user("Q"), ChatMessage.assistant("A"))
    begin, end = "<|endoftext|>", "<|im_end|>"
    assert engine.build_prompt([s, u, a, u]) == (
        f"{begin}[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] A {end}{begin}[INST] Q [/INST]"
    )
    assert (await engine.predict([s, u])).completion_tokens
    for bad in ([u, s], [u, u], [a, u], [u, a], [s], [u, a, ChatMessage.function("f", "x")]):
        with pytest.raises(PromptError):
            engine.build_prompt(bad)
    engine.strict = False
    assert engine.build_prompt([u, u]) == f"{begin}[INST] Q\nQ [/INST]"
    assert engine.build_prompt([a, u]).startswith(f"{begin}[INST]  [/INST] A")
    assert engine.message_len(u.copy_with(role=ChatRole.SYSTEM)) > engine.message_len(u)


def test_the_old_name_of_token(model_dir: Path) -> None:
    with pytest.warns(DeprecationWarning, match="use_auth_token"):
        LlamaEngine(str(model_dir), use_auth_token=True, device="cpu")


def test_constructing_and_running_needs_no_loop_at_the_start(model_dir: Path) -> None:
    engine = HuggingEngine(model_dir, device="cpu", max_new_tokens=2)
    for backend in ("asyncio", "trio"):
        assert anyio.run(engine.predict, HELLO, backend=backend).completion_tokens
