"""What is wrong with an engine's arguments is said before anything is started; the rest gets vLLM's names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kani_lite.engines.vllm.arguments import (
    Arguments,
    adapter_folders,
    check_parallel,
    command_line,
    context_asked_for,
    memory_fraction,
    merged,
)
from kani_lite.exceptions import EngineError

GIB = 2**30


def no_gpu() -> int:
    raise AssertionError("nobody asked for a share of the GPU")


def adapter(folder: Path, config: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_defaults_leave_vllm_its_own() -> None:
    assert Arguments("m").for_vllm(no_gpu) == {"model": "m", "dtype": "auto", "max_logprobs": -1}


def test_each_setting_gets_vllms_name(tmp_path: Path) -> None:
    folder = str(adapter(tmp_path / "a", {"r": 12}))
    arguments = Arguments(
        "m",
        dtype="bfloat16",
        quantization="awq",
        gpu_memory_reserved=6144,
        max_model_len=4096,
        enforce_eager=True,
        tensor_parallel_size=2,
        pipeline_parallel_size=3,
        trust_remote_code=True,
        token="secret",
        adapters={"a": folder},
        more={"seed": 7, "max_logprobs": 5},
    )
    assert arguments.for_vllm(lambda: 24 * GIB) == {
        "model": "m",
        "dtype": "bfloat16",
        "quantization": "awq",
        "gpu_memory_utilization": 0.25,
        "max_model_len": 4096,
        "enforce_eager": True,
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 3,
        "trust_remote_code": True,
        "hf_token": "secret",
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": 16,
        "seed": 7,
        "max_logprobs": 5,
    }


@pytest.mark.parametrize("reserved", [0.0, -1.0, 24 * 1024 + 1.0, float("nan"), float("inf")])
def test_memory_that_no_gpu_has_is_refused(reserved: float) -> None:
    with pytest.raises(EngineError, match=r"gpu_memory_reserved=.* there are 24576 MB"):
        memory_fraction(reserved, 24 * GIB)


def test_all_of_the_memory_may_be_reserved() -> None:
    assert memory_fraction(24 * 1024, 24 * GIB) == 1.0


def test_two_names_of_one_value_must_agree() -> None:
    assert context_asked_for(None, None) is None
    assert context_asked_for(10, 10) == context_asked_for(None, 10) == context_asked_for(10, None) == 10
    with pytest.raises(EngineError, match="max_context_size=10 and max_model_len=20 mean the same"):
        context_asked_for(10, 20)
    with pytest.raises(EngineError, match="context of 0 tokens"):
        context_asked_for(0, None)
    assert merged({"seed": 1}, {"seed": 1, "swap": 2}) == {"seed": 1, "swap": 2}
    assert merged({"max-num-seqs": 1}, {"max_num_seqs": 1}) == {"max_num_seqs": 1}
    with pytest.raises(EngineError, match="seed=1 and model_load_kwargs 2"):
        merged({"seed": 1}, {"seed": 2})


@pytest.mark.parametrize(
    ("given", "more", "said"),
    [
        ({"max_model_len": 500}, {"max_model_len": 300}, "max_model_len=300 where 500 is given by name"),
        ({"dtype": "float16"}, {"dtype": "float32"}, "dtype='float32' where 'float16' is given"),
        ({"enforce_eager": True}, {"enforce_eager": False}, "enforce_eager=False where True is given"),
        ({"tensor_parallel_size": 2}, {"tensor_parallel_size": 4}, "tensor_parallel_size=4 where 2 is given"),
        ({"adapters": {"a": "/a"}}, {"enable_lora": False}, "enable_lora=False where True is given"),
        ({"gpu_memory_reserved": 100}, {"gpu_memory_utilization": 0.5}, "gpu_memory_reserved=100 and gpu_memory_util"),
        ({"gpu_memory_reserved": 100}, {"kv_cache_memory_bytes": 9}, "gpu_memory_reserved=100 and kv_cache_memory_by"),
    ],
)
def test_what_is_given_by_name_is_not_given_otherwise(given: Any, more: Any, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        Arguments("m", **given, more=more)


def test_what_is_given_twice_alike_or_only_among_the_others_counts() -> None:
    assert Arguments("m", max_model_len=5, more={"max_model_len": 5}).for_vllm(no_gpu)["max_model_len"] == 5
    more = {"dtype": "float32", "gpu_memory_utilization": 0.5, "enforce_eager": True, "max_model_len": 3}
    assert Arguments("m", more=more).for_vllm(no_gpu) == {"model": "m", "max_logprobs": -1, **more}


@pytest.mark.parametrize(("name", "here"), [("model", "model_id"), ("hf_token", "token")])
def test_what_the_tokenizer_is_read_with_too_has_one_name(name: str, here: str) -> None:
    for pair in (({name: "secret"}, None), (None, {name: "secret"}), ({name: "secret"}, {name: "other"})):
        with pytest.raises(EngineError, match=f"engine_args has '{name}': give it as {here}=") as caught:
            merged(*pair)
        assert "secret" not in str(caught.value)


def test_parallel_sizes_are_positive() -> None:
    check_parallel(1, 8)
    with pytest.raises(EngineError, match="pipeline_parallel_size=0 is too small"):
        check_parallel(1, 0)


def test_adapters_need_their_folders(tmp_path: Path) -> None:
    good = adapter(tmp_path / "good", {"r": 8})
    assert adapter_folders({"a": good}) == {"a": str(good)}
    assert adapter_folders(None) == {}
    with pytest.raises(EngineError, match=r"The adapter 'b' has no .*adapter_config.json': give the folder"):
        adapter_folders({"a": good, "b": tmp_path})
    with pytest.raises(EngineError, match="empty name"):
        adapter_folders({"": good})


@pytest.mark.parametrize("config", [{}, [], {"r": "8"}, {"r": 0}, {"r": True}])
def test_an_adapters_rank_must_be_known(config: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"adapter_config.json' (can't be read|has the rank)"):
        adapter_folders({"a": adapter(tmp_path / "a", config)})


@pytest.mark.parametrize(("rank", "kernel"), [(1, 8), (8, 8), (9, 16), (257, 320), (512, 512)])
def test_the_rank_is_rounded_up_to_one_that_vllm_has(rank: int, kernel: int, tmp_path: Path) -> None:
    arguments = Arguments("m", adapters={"a": str(adapter(tmp_path / "a", {"r": rank}))})
    assert arguments.for_vllm(no_gpu)["max_lora_rank"] == kernel


def test_a_rank_that_vllm_has_not_is_refused(tmp_path: Path) -> None:
    arguments = Arguments("m", adapters={"a": str(adapter(tmp_path / "a", {"r": 513}))})
    with pytest.raises(EngineError, match="rank of up to 513: vLLM runs at most 512"):
        arguments.for_vllm(no_gpu)


def test_arguments_as_the_words_of_a_command() -> None:
    given = {
        "model": "m",
        "max_model_len": 64,
        "enforce_eager": True,
        "async_scheduling": False,
        "quantization": None,
        "gpu_memory_utilization": 0.5,
        "lora_modules": ["a=/x", "b=/y"],
        "compilation_config": {"mode": 0},
    }
    words = "--model m --max-model-len 64 --enforce-eager --no-async-scheduling --gpu-memory-utilization 0.5"
    assert command_line(given) == [
        *words.split(),
        *"--lora-modules a=/x b=/y --compilation-config".split(),
        '{"mode": 0}',
    ]
    with pytest.raises(EngineError, match="share=nan can't be given"):
        command_line({"share": float("nan")})
