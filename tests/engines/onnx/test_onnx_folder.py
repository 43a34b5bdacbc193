"""What the folder says, and what OnnxEngine says of a folder, a package or an argument that is no good."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from kani_lite import ChatMessage
from kani_lite.engines.onnx import OnnxEngine
from kani_lite.engines.onnx.files import read_folder
from kani_lite.exceptions import EngineError, MissingModelDependencies, PromptError, PromptTooLong
from tests.engines.onnx.conftest import Change

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


def test_what_a_folder_says(fp32: Path) -> None:
    folder = read_folder(fp32)
    config = folder.config
    assert (config.context_length, config.vocabulary_size, folder.ends, config.continues) == (2048, 1024, [2], True)
    assert config.token_bytes == 2 * 5 * 256 * 4
    assert config.recommended.greedy
    assert folder.tokenizer.decode(folder.tokenizer.encode("<|im_start|>a b\n")) == "<|im_start|>a b\n"
    with pytest.raises(PromptError, match="UTF-8"):
        folder.tokenizer.encode("\ud83d")


def test_what_the_models_authors_recommend(change: Change) -> None:
    search = {"search.do_sample": True, "search.temperature": 0.6, "search.top_k": 20, "search.top_p": 0.95}
    folder = read_folder(change("genai_config.json", search | {"model.eos_token_id": [2, 0]}))
    params = folder.config.recommended
    assert (params.temperature, params.top_k, params.top_p) == (0.6, 20, 0.95)
    assert folder.ends == [0, 2]


def test_the_context_ends_with_a_sliding_window(change: Change) -> None:
    folder = change("genai_config.json", {"model.decoder.sliding_window": {"window_size": 512}})
    assert read_folder(folder).config.context_length == 512
    with pytest.raises(EngineError, match=r"max_context_size=513 is more than .* at most 512"):
        OnnxEngine(folder, max_context_size=513)


@pytest.mark.parametrize(
    "given", [TEMPLATE, [{"name": "default", "template": "other"}, {"name": "tool_use", "template": TEMPLATE}]]
)
def test_a_template_in_the_tokenizers_config(change: Change, given: Any) -> None:
    special = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "<|im_end|>", "chat_template": given}
    folder = change("tokenizer_config.json", special)
    (folder / "chat_template.jinja").unlink()
    assert read_folder(folder).template.render([{"role": "user", "content": "a"}]) == "<s>a<|im_end|>"


def test_without_a_template(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(EngineError, match=r"copy' has no chat template: pass chat_template_kwargs="):
        OnnxEngine(copy)
    engine = OnnxEngine(copy, chat_template="chatml")
    assert "<|im_start|>user" in str(engine.build_prompt([ChatMessage.user("a")]))
    anyio.run(engine.close)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("genai_config.json", None, r"has no genai_config.json: .* `kani-lite convert onnx"),
        ("genai_config.json", "[1]", "holds no JSON object"),
        ("genai_config.json", "{", r"can't be read \(.*\): convert the model again"),
        ("genai_config.json", '{"model": {"type": "whisper"}}', "doesn't describe a text model"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{}", r"tokenizer.json' can't be read"),
        ("model.onnx", None, "can't be loaded: .*model.onnx"),
        ("model.onnx", "nothing", "can't be loaded"),
    ],
)
def test_a_folder_that_is_no_good(copy: Path, file: str, content: str | None, says: str) -> None:
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_text(content)
    with pytest.raises(EngineError, match=says):
        OnnxEngine(copy)


def test_no_folder(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    with pytest.raises(EngineError, match=r"There is no folder .*kani-lite convert onnx"):
        OnnxEngine(tmp_path / "none")


@pytest.mark.parametrize("package", ["onnxruntime_genai", "numpy", "tokenizers"])
def test_without_a_package(package: str, fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingModelDependencies, match=rf"'{package}', .*pip install 'kani-lite\[onnx\]'"):
        OnnxEngine(fp32)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"strict_tools": True}, "strict_tools=True isn't possible here"),
        ({"max_context_size": 0}, "max_context_size=0 is too small"),
        ({"max_context_size": 4096}, "max_context_size=4096 is more than .* at most 2048"),
        ({"threads": 0}, "threads=0 is too small"),
        ({"max_cached_prompts": -1}, "max_cached_prompts=-1 is too small"),
        ({"max_batch_size": 0}, "max_batch_size=0 is too small"),
        ({"kv_cache_memory_gb": 0}, "kv_cache_memory_gb=0 is no amount"),
    ],
)
def test_arguments_that_are_refused(fp32: Path, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        OnnxEngine(fp32, **arguments)
    with pytest.raises(TypeError, match="temprature"):
        OnnxEngine(fp32, temprature=1.0)


def test_prompts_that_have_no_room(fp32: Path) -> None:
    small = OnnxEngine(fp32, threads=1, max_context_size=40, kv_cache_memory_gb=30 * 10240 / 2**30)
    with pytest.raises(PromptTooLong, match="40 tokens: with one for a reply that is 1 more than the context of 40"):
        small.generate_now([5] * 40)
    with pytest.raises(
        EngineError, match=r"A prompt of 30 tokens needs 317,440 bytes .* room for 30 tokens: .*kv_cache"
    ):
        small.generate_now([5] * 30)
    done = small.generate_now([5] * 20, ignore_eos=True)
    assert (len(done.ids), done.finish_reason) == (10, "length")
    anyio.run(small.close)
