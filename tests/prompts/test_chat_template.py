from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_templates import BOS, EOS, make_tokenizer

from kani_lite import AIFunction, ChatMessage, ChatRole, ToolCall
from kani_lite.exceptions import EngineError, PromptError
from kani_lite.messages import ReasoningPart
from kani_lite.prompts.chat_template import (
    ChatTemplatePromptPipeline,
    hf_additional_keys,
    hf_content_transform,
    hf_reasoning_keys,
    hf_tool_use_keys,
    tool_schema,
)
from kani_lite.prompts.jinja import JinjaChatTemplate
from kani_lite.prompts.steps import TranslateRole
from kani_lite.prompts.templates import find_template, named_template, template_names

SHOW = "{% for m in messages %}{{ m | tojson }}\n{% endfor %}"
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ 'assistant:' if add_generation_prompt }}"
CHAT = [
    ChatMessage.system("Be brief."),
    ChatMessage.user("Hi"),
    ChatMessage.assistant("Hello"),
    ChatMessage.user("Bye"),
]


def f(x: str = "") -> str:
    """A function."""
    return x


def plain(template: Any = PLAIN, **kwargs: Any) -> ChatTemplatePromptPipeline:
    return ChatTemplatePromptPipeline(JinjaChatTemplate(template, bos_token=BOS, eos_token=EOS), **kwargs)


# ==== our templates ====

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
PROMPTS = {
    "alpaca": (
        "<s>Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello</s>\n\n### Instruction:\nBye\n\n### Response:\n"
    ),
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    ),
    "gemma": (
        "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    ),
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST]",
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>"
        "\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "mistral": "<s>[INST] Be brief.\n\nHi[/INST] Hello</s>[INST] Bye[/INST]",
    "phi3": (
        "<s><|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n<|user|>\nBye<|end|>\n"
        "<|assistant|>\n"
    ),
    "vicuna": "<s>Be brief. USER: Hi ASSISTANT: Hello</s>USER: Bye ASSISTANT:",
    "zephyr": (
        "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello</s>\n<|user|>\nBye</s>\n<|assistant|>\n"
    ),
}


def test_the_names() -> None:
    assert template_names() == sorted(PROMPTS)


@pytest.mark.parametrize("name", PROMPTS)
def test_named_templates(name: str) -> None:
    assert plain(chat_template=name)(CHAT) == PROMPTS[name]


def test_templates_with_a_system_message_of_their_own() -> None:
    assert plain(chat_template="alpaca")(CHAT[1:2]) == f"<s>{ALPACA}\n\n### Instruction:\nHi\n\n### Response:\n"
    assert plain(chat_template="vicuna")(CHAT[1:2]) == (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: Hi ASSISTANT:"
    )


def test_mistrals_calls() -> None:
    call = ToolCall.from_function("f", call_id_="123456789", x="é")
    chat = [CHAT[1], ChatMessage.assistant(None, tool_calls=[call]), ChatMessage.function("f", "r", call.id)]
    assert plain(chat_template="mistral")(chat, [AIFunction(f)]) == (
        f"<s>[AVAILABLE_TOOLS] [{json.dumps(tool_schema(AIFunction(f)))}][/AVAILABLE_TOOLS][INST] Hi[/INST]"
        '[TOOL_CALLS] [{"name": "f", "arguments": {"x": "é"}, "id": "123456789"}]</s>'
        '[TOOL_RESULTS] {"content": "r", "call_id": "123456789"}[/TOOL_RESULTS]'
    )


def test_templates_by_path_and_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(PLAIN)
    (tmp_path / "other.txt").write_text(PLAIN)
    for given in (PLAIN, path, str(path), str(tmp_path / "other.txt")):
        assert find_template(given) == PLAIN
    assert find_template("Hello,\nall") == "Hello,\nall"
    assert find_template("llama2") == named_template("llama2")


def test_templates_that_are_not_there(tmp_path: Path) -> None:
    names = ", ".join(PROMPTS)
    with pytest.raises(PromptError, match=f"no chat template 'lama2': give one of {names}, the path of a .jinja file"):
        plain(chat_template="lama2")
    with pytest.raises(PromptError, match=r"can't be read: .*No such file"):
        find_template(tmp_path / "none.jinja")
    (tmp_path / "broken.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(PromptError, match="can't be read"):
        find_template(str(tmp_path / "broken.jinja"))


def test_two_pipelines_on_one_tokenizer() -> None:
    tokenizer = make_tokenizer(PLAIN)
    own = ChatTemplatePromptPipeline(tokenizer)
    llama, chatml = (ChatTemplatePromptPipeline(tokenizer, chat_template=name) for name in ("llama2", "chatml"))
    for _ in range(2):
        assert llama(CHAT) == PROMPTS["llama2"]
        assert chatml(CHAT) == PROMPTS["chatml"]
        assert own(CHAT) == "system: Be brief.\nuser: Hi\nassistant: Hello\nuser: Bye\nassistant:"
    assert tokenizer.chat_template == PLAIN
    assert (llama.chat_template, own.chat_template) == (named_template("llama2"), PLAIN)


def test_a_tokenizer_with_several_templates() -> None:
    tools = "TOOLS{% for t in tools or [] %}{{ t.function.name }}{% endfor %} " + PLAIN
    tokenizer = make_tokenizer({"default": PLAIN, "tool_use": tools})
    pipeline = ChatTemplatePromptPipeline(tokenizer)
    assert pipeline(CHAT[1:2]) == "user: Hi\nassistant:"
    assert pipeline(CHAT[1:2], [AIFunction(f)]) == "TOOLSf user: Hi\nassistant:"
    assert pipeline.chat_template == tools
    assert ChatTemplatePromptPipeline(tokenizer, chat_template="tool_use")(CHAT[1:2]) == "TOOLS user: Hi\nassistant:"
    assert ChatTemplatePromptPipeline(tokenizer, chat_template="llama2")(CHAT) == PROMPTS["llama2"]


def test_a_tokenizer_without_a_template() -> None:
    with pytest.raises(EngineError, match="has no chat template"):
        ChatTemplatePromptPipeline(make_tokenizer(None))
    assert ChatTemplatePromptPipeline(make_tokenizer(None), chat_template="llama2")(CHAT) == PROMPTS["llama2"]


def test_from_pretrained(tmp_path: Path) -> None:
    make_tokenizer(PLAIN).save_pretrained(tmp_path)
    pipeline = ChatTemplatePromptPipeline.from_pretrained(str(tmp_path), chat_template="llama2")
    assert pipeline(CHAT) == PROMPTS["llama2"]


# ==== keys ====

CALLING = ChatMessage.assistant(
    [ReasoningPart(content="why"), "Wait."], tool_calls=[ToolCall.from_function("f", call_id_="1", x="é")]
)
BROKEN = CALLING.copy_with(tool_calls=[ToolCall.from_function("f", call_id_="1")])
BROKEN.tool_calls[0].function.arguments = "{"


def calls(arguments: Any) -> dict[str, Any]:
    return {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}]}


def test_helpers() -> None:
    assert hf_tool_use_keys(CALLING) == calls({"x": "é"})
    assert hf_tool_use_keys(BROKEN) == calls("{")
    assert hf_tool_use_keys(ChatMessage.function("f", "r", "1")) == {"name": "f", "tool_call_id": "1"}
    assert hf_tool_use_keys(ChatMessage.function(None, "r")) == {}
    assert hf_tool_use_keys(ChatMessage.user("f")) == {}
    assert hf_reasoning_keys(CALLING, reasoning_key="thinking") == {"thinking": "why"}
    assert hf_reasoning_keys(CALLING, reasoning_key=None) == {}
    assert hf_additional_keys(CALLING, reasoning_key="r") == calls({"x": "é"}) | {"r": "why"}
    assert hf_content_transform(CALLING) == "Wait."
    assert hf_content_transform(ChatMessage.assistant(None)) == ""


@pytest.mark.parametrize(
    ("template", "kwargs", "key"),
    [
        (SHOW, {}, "reasoning_content"),
        (SHOW + "{{ '' if false else '' }}{# #}{% if false %}{{ m.thinking }}{% endif %}", {}, "thinking"),
        (SHOW, {"chat_template_reasoning_content_key": "mine"}, "mine"),
    ],
)
def test_what_a_template_gets(template: str, kwargs: dict[str, Any], key: str) -> None:
    got = [json.loads(line) for line in plain(template, **kwargs)([CHAT[1], CALLING]).splitlines()]
    expected = {"role": "assistant", "content": "Wait."} | calls({"x": "é"}) | {key: "why"}
    assert got == [{"role": "user", "content": "Hi"}, expected]


# ==== the pipeline ====


def test_steps_come_before_the_template() -> None:
    pipeline = plain(steps=[TranslateRole(role=ChatRole.SYSTEM, to=ChatRole.USER)]).wrap(prefix="<", suffix=">")
    chat = [m.model_copy(deep=True) for m in CHAT]
    for _ in range(2):
        assert pipeline(chat[:2]) == "user: <Be brief.>\nuser: <Hi>\nassistant:"
        assert len(pipeline) == 2
    assert chat == CHAT


def test_dicts_of_ones_own_go_to_the_template_as_they_are() -> None:
    pipeline = plain().conversation_dict(system_role="developer", additional_keys=lambda m: {"n": 1})
    assert pipeline(CHAT[:2]) == "developer: Be brief.\nuser: Hi\nassistant:"


def test_a_step_that_makes_something_else() -> None:
    with pytest.raises(PromptError, match="takes messages, and the steps before it made a str"):
        plain().conversation_fmt()(CHAT)


def test_template_kwargs() -> None:
    loud = plain("{{ level }}{{ add_generation_prompt }}", level=3)
    assert loud.execute([CHAT[1]]) == "3True"
    assert loud([CHAT[1]], add_generation_prompt=False) == "3False"
    assert plain(PLAIN, add_generation_prompt=False)(CHAT[1:2]) == "user: Hi\n"


def test_measuring_leaves_out_the_start() -> None:
    pipeline = plain().ensure_start(role=ChatRole.USER)
    assert pipeline(CHAT[2:3], add_generation_prompt=False) == ""
    assert pipeline.execute(CHAT[2:3], for_measurement=True, deepcopy=True) == "assistant: Hello\nassistant:"


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = plain().wrap(prefix="<")
    pipeline.explain(CHAT[1:2])
    shown = capsys.readouterr().out
    assert "Write all messages as one text with the chat template, the prompt." in shown
    assert "user: <Hi" in shown
    pipeline.explain()
    assert "ApplyChatTemplate" not in repr(pipeline)
