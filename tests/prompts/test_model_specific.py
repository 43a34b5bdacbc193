"""The pipelines written by hand, the registries, and the search for a model's parents."""

from __future__ import annotations

import json
import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from kani_lite import AIFunction, ChatMessage, ReasoningPart, ToolCall
from kani_lite.exceptions import MissingModelDependencies
from kani_lite.prompts.chat_template import ChatTemplatePromptPipeline
from kani_lite.prompts.model_specific import (
    PARSER_REGISTRY,
    PROMPT_PIPELINE_REGISTRY,
    gpt_oss,
    parents,
    parser_for_hf_model,
    prompt_pipeline_for_hf_model,
    qwen3,
    qwen3_5,
    search,
    warn_for_uninitialized_parser,
)
from kani_lite.prompts.parsers import (
    BaseParser,
    DeepSeekR1Parser,
    GPTOSSParser,
    Llama3XToolCallParser,
    MistralToolCallParser,
    Qwen3_5Parser,
    Qwen3Parser,
    Qwen3ThinkingParser,
)
from kani_lite.prompts.pipeline import PromptPipeline
from kani_lite.prompts.pipelines import LLAMA2_PIPELINE, LLAMA3_PIPELINE, MISTRAL_V3_PIPELINE

system, user, assistant, function = (
    ChatMessage.system,
    ChatMessage.user,
    ChatMessage.assistant,
    ChatMessage.function,
)


class Tokenizer:
    """Renders what its template would be given."""

    chat_template = "a template"
    name_or_path = "a tokenizer"

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> str:
        return json.dumps([conversation, {k: v for k, v in kwargs.items() if k == "enable_thinking"}])


class ImportTokenizer:
    """In place of transformers: says which tokenizer was loaded."""

    loaded: list[str]

    def __init__(self) -> None:
        self.loaded = []
        self.AutoTokenizer = self

    def from_pretrained(self, model_id: str) -> Tokenizer:
        self.loaded.append(model_id)
        return Tokenizer()


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> ImportTokenizer:
    fake = ImportTokenizer()
    monkeypatch.setitem(sys.modules, "transformers", fake)
    return fake


@pytest.fixture(autouse=True)
def forgotten() -> None:
    parser_for_hf_model.cache_clear()
    parents._of_hub.cache_clear()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever isn't replaced below fails a test that reaches for the network."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"the network was asked: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A hub: what `base_model` is in the cards of its models. `asked` has those whose card was fetched."""
    hub: dict[str, Any] = {"asked": []}

    def fetch(model_id: str, file: str, **kwargs: Any) -> str:
        hub["asked"].append(model_id)
        if model_id not in hub:
            raise OSError("no such model")
        path = tmp_path / "card.md"
        path.write_text(f"---\nbase_model: {json.dumps(hub[model_id])}\n---\nA model.\n")
        return str(path)

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    monkeypatch.setattr(parents, "_in_cache", lambda model_id, file: None)
    return hub


# ==== prompts ====

CHAT = [system("S"), user("a"), assistant("b"), user("c")]


def test_llama2() -> None:
    begin = "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\na [/INST] b </s>"
    assert LLAMA2_PIPELINE(CHAT) == begin + "<s>[INST] c [/INST]"
    assert LLAMA2_PIPELINE([*CHAT[:3], assistant("d")]) == begin.removesuffix(" </s>") + " d"
    asked = [user("a"), assistant(None, tool_calls=[ToolCall.from_function("f")]), function("f", "r")]
    assert LLAMA2_PIPELINE(asked) == "<s>[INST] a [/INST]  </s><s>[INST] r [/INST]"


def test_llama3() -> None:
    def part(role: str, text: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}"

    begin = "<|begin_of_text|>" + part("system", "S<|eot_id|>") + part("user", "a<|eot_id|>")
    assert LLAMA3_PIPELINE(CHAT) == begin + (
        part("assistant", "b<|eot_id|>") + part("user", "c<|eot_id|>") + part("assistant", "")
    )
    assert LLAMA3_PIPELINE(CHAT[:3]) == begin + part("assistant", "b")
    with pytest.warns(UserWarning, match="user messages"):
        told = LLAMA3_PIPELINE([user("a"), assistant(None), function("f", "r")])
    assert told == "<|begin_of_text|>" + part("user", "a<|eot_id|>") + part("assistant", "<|eot_id|>") + (
        part("user", "r<|eot_id|>") + part("assistant", "")
    )


def weather(city: str) -> None:
    """Says it."""


TOOL = AIFunction(weather)
TOOLS = (
    '[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "weather", "description": "Says it.", "parameters": '
    + json.dumps(TOOL.json_schema)
    + "}}][/AVAILABLE_TOOLS]"
)


def test_mistral() -> None:
    """As the chat template of Mistral-7B-Instruct-v0.3 writes it."""
    call = ToolCall.from_function("weather", call_id_="123456789", city="Zürich")
    chat = [user("a"), assistant(None, tool_calls=[call]), function("weather", '{"t": 3}', "123456789")]
    written = (
        f"<s>{TOOLS}[INST] a[/INST]"
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Zürich"}, "id": "123456789"}]</s>'
        '[TOOL_RESULTS] {"content": {"t": 3}, "call_id": "123456789"}[/TOOL_RESULTS]'
    )
    assert MISTRAL_V3_PIPELINE(chat, [TOOL]) == written
    later = [*chat, assistant("cold"), user("b")]
    moved = written.replace(TOOLS, "") + f" cold</s>{TOOLS}[INST] b[/INST]"
    assert MISTRAL_V3_PIPELINE(later, [TOOL]) == moved
    assert MISTRAL_V3_PIPELINE([], [TOOL]) == "<s>" + TOOLS
    assert MISTRAL_V3_PIPELINE([]) == "<s>"
    with pytest.warns(UserWarning, match="system messages"):
        assert MISTRAL_V3_PIPELINE(CHAT) == "<s>[INST] S\n\na[/INST] b</s>[INST] c[/INST]"


def test_mistral_takes_any_id_and_any_arguments() -> None:
    """Its ids have nine letters and digits; arguments that are no JSON are shown as the model wrote them."""
    calls = [ToolCall.from_function("f", call_id_="call_1"), ToolCall.from_function("f", call_id_="e7a1-4b2c-9d0")]
    calls[0].function.arguments = "{"
    prompt = MISTRAL_V3_PIPELINE(
        [assistant("so", tool_calls=calls), function("f", None, "call_1"), function("f", "x", "e7a1-4b2c-9d0")]
    )
    assert prompt == (
        '<s> so[TOOL_CALLS] [{"name": "f", "arguments": "{", "id": "0000call1"}, '
        '{"name": "f", "arguments": {}, "id": "e7a14b2c9"}]</s>'
        '[TOOL_RESULTS] {"content": "", "call_id": "0000call1"}[/TOOL_RESULTS]'
        '[TOOL_RESULTS] {"content": "x", "call_id": "e7a14b2c9"}[/TOOL_RESULTS]'
    )


@pytest.mark.parametrize(
    ("module", "key"), [(gpt_oss, "thinking"), (qwen3, "reasoning_content"), (qwen3_5, "reasoning_content")]
)
def test_reasoning_has_the_key_of_the_model(module: Any, key: str) -> None:
    thinking = [user("a"), assistant([ReasoningPart(content="hm"), "b"])]
    for given, expected in ((None, key), ("thoughts", "thoughts")):
        pipeline = module.build_prompt_pipeline(
            Tokenizer(), chat_template_reasoning_content_key=given, enable_thinking=False
        )
        (_, reply), options = json.loads(pipeline(thinking))
        assert reply == {"role": "assistant", "content": "b", expected: "hm"}
        assert options == {"enable_thinking": False}


# ==== the search ====

PIPELINES = [
    ("meta-llama/Llama-2-7b-chat-hf", LLAMA2_PIPELINE),
    ("META-LLAMA/llama-2-7b-chat-hf", LLAMA2_PIPELINE),
    ("meta-llama/Meta-Llama-3-8B-Instruct", LLAMA3_PIPELINE),
    ("/models/meta-llama/Meta-Llama-3-8B-Instruct", LLAMA3_PIPELINE),
    ("mistralai/Mistral-7B-Instruct-v0.3", MISTRAL_V3_PIPELINE),
    ("mistralai/Mistral-Small-Instruct-2409", MISTRAL_V3_PIPELINE),
    ("meta-llama/Llama-3.1-8B-Instruct", None),
    ("nobody/knows", None),
]


@pytest.mark.parametrize(("model_id", "expected"), PIPELINES)
def test_pipelines_by_name(model_id: str, expected: Any) -> None:
    found = prompt_pipeline_for_hf_model(model_id, search_parents=False, fallback_to_chat_template=False)
    assert found is expected


PARSERS = [
    ("meta-llama/Meta-Llama-3-8B-Instruct", None),
    ("meta-llama/Llama-3.1-8B-Instruct", Llama3XToolCallParser),
    ("meta-llama/Meta-Llama-3.1-8B-Instruct", Llama3XToolCallParser),
    ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", DeepSeekR1Parser),
    ("openai/gpt-oss-20b", GPTOSSParser),
    ("mistralai/Mistral-Large-Instruct-2407", MistralToolCallParser),
    ("Qwen/Qwen3-4B-Thinking-2507", Qwen3ThinkingParser),
    ("qwen/qwen3-8b", Qwen3Parser),
    ("Qwen/Qwen3.5-9B", Qwen3_5Parser),
    ("gpt2", None),
]


@pytest.mark.parametrize(("model_id", "expected"), PARSERS)
def test_parsers_by_name(model_id: str, expected: Any) -> None:
    assert parser_for_hf_model(model_id, search_parents=False) is expected


def test_everything_registered_can_be_imported() -> None:
    for _, where in [*PROMPT_PIPELINE_REGISTRY, *PARSER_REGISTRY]:
        module, _, name = where.rpartition(".")
        found = getattr(import_module(module), name)
        assert isinstance(found, PromptPipeline) or callable(found)


def test_all_is_passed_on_to_the_search_of_the_parent(cards: dict[str, Any], transformers: ImportTokenizer) -> None:
    """kani drops the keywords and downloads the tokenizer of the parent."""
    cards |= {"me/tuned": "some/base", "some/base": ["Qwen/Qwen3-8B"]}
    pipeline = prompt_pipeline_for_hf_model(
        "me/tuned",
        chat_template_reasoning_content_key="thoughts",
        chat_template_kwargs={"enable_thinking": False},
    )
    assert transformers.loaded == ["me/tuned"]
    assert pipeline is not None
    (reply,), options = json.loads(pipeline([assistant([ReasoningPart(content="hm"), "b"])]))
    assert (reply["thoughts"], options) == ("hm", {"enable_thinking": False})

    mine = Tokenizer()
    pipeline = prompt_pipeline_for_hf_model("me/tuned", mine)
    assert isinstance(pipeline, ChatTemplatePromptPipeline)
    assert pipeline.tokenizer is mine
    assert pipeline.chat_template_reasoning_content_key == "reasoning_content"
    assert transformers.loaded == ["me/tuned"]
    assert prompt_pipeline_for_hf_model("me/tuned", search_parents=False, fallback_to_chat_template=False) is None


def test_parsers_of_parents(cards: dict[str, Any]) -> None:
    cards |= {"me/a": "me/b", "me/b": "Qwen/Qwen3-8B", "me/merged": ["Qwen/Qwen3-8B", "me/b"], "me/c": "me/c"}
    assert parser_for_hf_model("me/a") is Qwen3Parser
    assert parser_for_hf_model("me/a") is Qwen3Parser
    assert cards["asked"] == ["me/a", "me/b"]
    assert [parser_for_hf_model(name) for name in ("me/merged", "me/c", "me/unknown")] == [None] * 3


def test_without_a_parent_the_chat_template_is_used(cards: dict[str, Any], transformers: ImportTokenizer) -> None:
    pipeline = prompt_pipeline_for_hf_model("me/own", chat_template_kwargs={"enable_thinking": True})
    assert type(pipeline) is ChatTemplatePromptPipeline
    assert transformers.loaded == ["me/own"]
    assert pipeline.chat_template_kwargs == {"enable_thinking": True}


def test_a_tokenizer_takes_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingModelDependencies, match="kani-lite\\[huggingface\\]"):
        prompt_pipeline_for_hf_model("Qwen/Qwen3-8B", search_parents=False)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"README.md": "---\nbase_model: Qwen/Qwen3-8B\n---\n"}, ["Qwen/Qwen3-8B"]),
        ({"README.md": "---\nbase_model: [a/b, c/d]\n---\n", "config.json": '{"base_model": "e/f"}'}, ["a/b", "c/d"]),
        ({"README.md": "no data", "config.json": '{"_name_or_path": "a/b"}'}, ["a/b"]),
        ({"adapter_config.json": '{"base_model_name_or_path": "a/b"}', "config.json": "{}"}, ["a/b"]),
        ({"README.md": "---\n{: [\n---\n", "config.json": "{", "adapter_config.json": "[]"}, []),
        ({"README.md": "---\nbase_model: 7\n---\n", "config.json": '{"_name_or_path": "model"}'}, []),
        ({}, []),
    ],
)
def test_parents_of_a_folder(tmp_path: Path, files: dict[str, str], expected: list[str]) -> None:
    """Without the network, from what is in it."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    assert parents.base_models(str(folder), online=True) == expected


def test_a_folder_never_asks_the_network(tmp_path: Path, cards: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text('{"base_model": "me/tuned"}')
    cards["me/tuned"] = "Qwen/Qwen3-8B"
    assert list(parents.family(str(tmp_path))) == [str(tmp_path), "me/tuned"]
    for missing in ("/no/such/folder", "./no", "~/no/folder", "three/part/path"):
        assert list(parents.family(missing)) == [missing]
    assert cards["asked"] == []


@pytest.mark.parametrize("offline", ["1", "true"])
def test_offline_is_honoured(cards: dict[str, Any], monkeypatch: pytest.MonkeyPatch, offline: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    cards["me/tuned"] = "Qwen/Qwen3-8B"
    assert list(parents.family("me/tuned")) == ["me/tuned"]
    assert cards["asked"] == []


def test_a_model_on_the_disk_brings_its_card(
    cards: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("---\nbase_model: some/base\n---\n")
    on_disk = {("me/tuned", "config.json"): "there", ("me/tuned", "README.md"): str(tmp_path / "README.md")}
    monkeypatch.setattr(parents, "_in_cache", lambda *key: on_disk.get(key))
    assert list(parents.family("me/tuned")) == ["me/tuned", "some/base"]
    assert cards["asked"] == []


def test_the_cache_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda model_id, file: f"{model_id}/{file}")
    assert parents._in_cache("a/b", "x") == "a/b/x"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda model_id, file: None)
    assert parents._in_cache("a/b", "x") is None
    monkeypatch.undo()
    assert parents._in_cache("no name--", "x") is None


def test_without_the_hub_package_names_still_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.repocard", None)
    (tmp_path / "README.md").write_text("---\nbase_model: a/b\n---\n")
    (tmp_path / "config.json").write_text('{"base_model": "Qwen/Qwen3-8B"}')
    assert parser_for_hf_model("me/tuned") is None
    assert parser_for_hf_model(str(tmp_path)) is Qwen3Parser


# ==== the warning ====


class Engine:
    def __init__(self, model_id: str) -> None:
        self.model_id = model_id


def test_a_parser_that_is_missing() -> None:
    with pytest.warns(UserWarning, match="Qwen3Parser") as told:
        warn_for_uninitialized_parser("Qwen/Qwen3-8B")
    assert "from kani_lite.prompts.parsers import Qwen3Parser" in str(told[0].message)
    other: Any = Engine("gpt2")
    engine: Any = Engine("Qwen/Qwen3-8B")
    wrapped = BaseParser(other)
    with pytest.warns(UserWarning, match="Qwen3Parser"):
        warn_for_uninitialized_parser("Qwen/Qwen3-8B")
    parser = Qwen3Parser(engine)
    warn_for_uninitialized_parser("Qwen/Qwen3-8B")
    warn_for_uninitialized_parser("gpt2")
    del wrapped, parser
    warn_for_uninitialized_parser("gpt2")  # no parser is registered for it
    with pytest.warns(UserWarning, match="Qwen3Parser"):
        warn_for_uninitialized_parser("Qwen/Qwen3-8B")


def test_the_registry_can_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PARSER_REGISTRY", [("mine/*", "kani_lite.prompts.parsers.Qwen3Parser")])
    assert parser_for_hf_model("mine/x", search_parents=False) is Qwen3Parser
