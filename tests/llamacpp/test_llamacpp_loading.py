"""Files that are no good, options that there aren't, and what a file says of itself."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from kani_lite import ChatMessage
from kani_lite.engines import SamplingParams
from kani_lite.engines.llamacpp import LlamaCppEngine
from kani_lite.engines.llamacpp.files import recommended
from kani_lite.engines.registry import engine_from
from kani_lite.exceptions import EngineError, PromptTooLong


def test_a_broken_file_is_refused_with_its_reason(tmp_path: Path, gguf: Callable[..., Path]) -> None:
    whole = gguf().read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EngineError, match=r"llama\.cpp can't load '.*cut\.gguf': .*(within the file bounds|corrupted)"):
        LlamaCppEngine(model_path=tmp_path / "cut.gguf")


def test_a_file_without_a_chat_template_is_refused(tmp_path: Path, gguf: Callable[..., Path]) -> None:
    file = tmp_path / "bare.gguf"
    file.write_bytes(gguf().read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.xhat_template"))
    with pytest.raises(EngineError, match=r"bare\.gguf' has no chat template"):
        LlamaCppEngine(model_path=file)
    assert LlamaCppEngine(model_path=file, chat_template="chatml").tool_format.name


@pytest.mark.parametrize(("given", "says"), [
    ({"n_gpu_layer": 1}, "model_load_kwargs has 'n_gpu_layer', and llama.cpp has none"),
    ({"n_ctx": 512}, "'n_ctx', and the engine sets it itself"),
    ({"progress_callback": print}, "'progress_callback', and llama.cpp has none"),
    ({"n_batch": "many"}, r"model_load_kwargs\['n_batch'\]='many' is no good"),
    ({"type_k": "q3"}, r"model_load_kwargs\['type_k'\]='q3' is no kind of number: f32, f16"),
    ({"lora_path": "/nowhere.gguf"}, "There is no LoRA adapter '/nowhere.gguf'"),
    ({"lora_scale": 2.0}, "has lora_scale=2.0 and no lora_path: give the adapter's file too"),
    ({"tensor_split": ["half"]}, "has 'half' for 'tensor_split': give a number"),
    ({"type_k": 99}, r"\['type_k'\]=99 is no number that is known for it: give one of 0 \(f32\), 1 \(f16\)"),
    ({"type_v": 9}, r"\['type_v'\]=9 is no number that is known for it"),  # there is one, and it isn't for this
    ({"load_mode": 77}, r"\['load_mode'\]=77 is no number .*-1 \(AUTO\), 0 \(NONE\), 1 \(MMAP\)"),
    ({"flash_attn_type": 77}, r"\['flash_attn_type'\]=77 is no number"),
    ({"rope_scaling_type": 77}, r"\['rope_scaling_type'\]=77 is no number .*2 \(YARN\), 3 \(LONGROPE\)\.$"),
    ({"attention_type": 1, "n_ubatch": 8}, "'attention_type', and the engine sets it itself"),
    ({"n_batch": -1}, r"\['n_batch'\]=-1 is no good: its field can't hold that, it would be 4294967295"),
    ({"offload_kqv": "no"}, r"\['offload_kqv'\]='no' is no good: its field can't hold that, it would be True"),
    ({"n_threads": 10**6}, "threads=1000000 are more than the 512 that llama.cpp can have"),
])  # fmt: skip
def test_options_that_there_are_not(build: Callable[..., Any], given: dict[str, Any], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        build(model_load_kwargs=given)


async def test_options_in_the_names_of_llama_cpp(build_later: Callable[..., Any]) -> None:
    given = {"use_mmap": False, "use_mlock": False, "flash_attn": False, "n_threads": 1, "n_gpu_layers": 0}
    engine = await build_later(model_load_kwargs=given)
    assert (await engine.predict([ChatMessage.user("Hi, who are you?")], temperature=0)).message.text
    await engine.close()


@pytest.mark.parametrize("kinds", [("f32", "q8_0"), ("q8_0", "f32"), ("iq4_nl", 20)])
async def test_kinds_of_keys_and_values(build_later: Callable[..., Any], kinds: tuple[Any, Any]) -> None:
    engine = await build_later(model_load_kwargs=dict(zip(("type_k", "type_v"), kinds, strict=True)))
    assert (await engine.predict([ChatMessage.user("Hi, who are you?")], temperature=0)).message.text
    await engine.close()


def test_a_file_that_does_not_say_its_context_length(tmp_path: Path, gguf: Callable[..., Path]) -> None:
    file, key = tmp_path / "endless.gguf", b"llama.context_length" + struct.pack("<I", 4)
    whole = gguf().read_bytes()
    assert whole.count(key + struct.pack("<I", 2048)) == 1
    for length in (0, 2**32 - 1):
        file.write_bytes(whole.replace(key + struct.pack("<I", 2048), key + struct.pack("<I", length)))
        with pytest.raises(EngineError, match=r"length of '.*endless\.gguf' isn't known: pass max_context_size="):
            LlamaCppEngine(model_path=file)
        engine = LlamaCppEngine(model_path=file, max_context_size=512)
        assert engine.max_context_size == 512
        asked = "<|im_start|>user\nHi, who are you?<|im_end|>\n<|im_start|>assistant\n"
        assert engine.generate_now(asked, max_tokens=20).text.startswith("I am Nano")
        anyio.run(engine.close)


async def test_a_prompt_that_is_too_long_is_refused(engine: Any) -> None:
    with pytest.raises(PromptTooLong, match="more than the context of 2048"):
        await engine.predict([ChatMessage.user("word " * 1500)])


def adapter(path: Path) -> Path:
    """A LoRA adapter with random weights, large enough to change every reply."""
    from gguf import GGUFWriter

    random, writer = np.random.default_rng(0), GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for layer in range(5):
        for part in ("attn_q", "attn_v"):
            for side, shape in (("a", (4, 256)), ("b", (256, 4))):
                values = random.normal(0, 0.3, shape).astype(np.float32)
                writer.add_tensor(f"blk.{layer}.{part}.weight.lora_{side}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_adapter_changes_replies_by_its_scale(build: Callable[..., Any], tmp_path: Path) -> None:
    path = adapter(tmp_path / "adapter.gguf")
    said = {}
    for scale in (None, 0.0, 1.0):
        given = {} if scale is None else {"lora_path": path, "lora_scale": scale}
        engine = build(model_load_kwargs=given)
        said[scale] = engine.generate_now("<|im_start|>assistant\n", temperature=0, max_tokens=20).ids
        anyio.run(engine.close)
    assert said[0.0] == said[None] != said[1.0]


def test_what_the_file_says(engine: Any) -> None:
    assert engine.max_context_size == 2048
    assert engine.vocabulary_size == 1024
    assert engine.tool_format.name == "hermes"
    assert engine.metadata["general.architecture"] == "llama"
    assert engine.model_sampling == SamplingParams(temperature=0.0)
    assert engine.encode("<|im_start|>user\n")[0] == 1
    assert engine.decode(engine.encode("Grüße <tool_call>🙂")) == "Grüße <tool_call>🙂"


@pytest.mark.parametrize(("metadata", "params"), [
    ({}, {"temperature": 0.0}),
    ({"general.sampling.top_k": "40"}, {"temperature": 1.0, "top_k": 40}),
    (
        {
            "general.sampling.temp": "0.600000",
            "general.sampling.top_p": "0.95",
            "general.sampling.penalty_repeat": "1.1",
        },
        {"temperature": 0.6, "top_p": 0.95, "repetition_penalty": 1.1},
    ),
])  # fmt: skip
def test_what_its_authors_recommend(metadata: dict[str, str], params: dict[str, Any]) -> None:
    assert recommended(metadata) == SamplingParams(**params)


def test_an_engine_from_a_line(gguf: Callable[..., Path]) -> None:
    engine: Any = engine_from(f"llamacpp:{gguf()}?max_context_size=256&threads=1")
    assert engine.max_context_size == 256
    anyio.run(engine.close)


PROGRAM = """
import sys, anyio
from kani_lite import ChatMessage
from kani_lite.engines.llamacpp import LlamaCppEngine

async def main():
    print((await engine.predict([ChatMessage.user("Hi, who are you?")])).message.text)

engine = LlamaCppEngine(model_path=sys.argv[1], verbose=bool(int(sys.argv[2])))
anyio.run(main)
assert not {"torch", "transformers"} & set(sys.modules)
"""


@pytest.mark.parametrize("verbose", [0, 1])
def test_a_program_without_torch_is_quiet_and_ends(gguf: Callable[..., Path], verbose: int) -> None:
    command = [sys.executable, "-c", PROGRAM, str(gguf()), str(verbose)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.startswith("I am Nano")
    assert ("llama_model_loader" in done.stderr) == bool(verbose)
    assert verbose or not done.stderr
