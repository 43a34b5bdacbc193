"""LlamaEngine as the seed document calls it: the default model, its old arguments, 4-bit weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio.to_thread
import bitsandbytes
import pytest
from tiny import save_llama

from kani_lite import Kani
from kani_lite.engines import LlamaEngine
from kani_lite.exceptions import EngineError, PromptError
from kani_lite.messages import ChatMessage

OLD_NAME = "ignore:use_auth_token is an old name:DeprecationWarning"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, without a login to the hub; asking the hub itself fails."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    return tmp_path


@pytest.fixture
def fetched(hub_cache: Path) -> Path:
    """A tiny model where the hub's client leaves Llama 2's chat model."""
    repository = hub_cache / "models--meta-llama--Llama-2-7b-chat-hf"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    folder = save_llama(repository / "snapshots" / "abc")
    (folder / "chat_template.jinja").unlink()  # the engine writes the prompt
    return hub_cache


def build() -> LlamaEngine:
    return LlamaEngine(
        use_auth_token=True,
        strict=True,
        model_load_kwargs={
            "device_map": "auto",
            "load_in_4bit": True,
        },
    )


@pytest.mark.filterwarnings(OLD_NAME)
@pytest.mark.usefixtures("fetched")
async def test_the_seed_documents_call() -> None:
    engine = await anyio.to_thread.run_sync(build)
    try:
        layer = engine.model.model.layers[0].mlp.up_proj
        assert isinstance(layer, bitsandbytes.nn.Linear4bit)
        assert layer.weight.quant_state.quant_type == "nf4"
        assert engine.model_id == "meta-llama/Llama-2-7b-chat-hf"
        ai = Kani(engine, system_prompt="be good")
        first = await ai.chat_round_str("hello there", max_tokens=6, temperature=0)
        await ai.chat_round("how are you?", max_tokens=6, temperature=0)
        assert [message.role.value for message in ai.chat_history] == ["user", "assistant", "user", "assistant"]
        done = await engine.predict(
            [ChatMessage.system("be good"), ChatMessage.user("hello there")], max_tokens=6, temperature=0
        )
        assert done.message.text == first
        assert 1 <= (done.completion_tokens or 0) <= 6
        with pytest.raises(PromptError, match="must alternate"):
            await engine.predict([ChatMessage.user("a"), ChatMessage.user("b")])
    finally:
        await engine.close()


@pytest.mark.usefixtures("fetched")
def test_the_old_name_is_said_to_be_old() -> None:
    with pytest.warns(DeprecationWarning, match="pass token="):
        build()


@pytest.mark.filterwarnings(OLD_NAME)
@pytest.mark.usefixtures("hub_cache")
def test_a_gated_model_without_a_login() -> None:
    with pytest.raises(EngineError, match=r"token=True stands for that of your login .* log in with `hf auth login`"):
        build()
