from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kani_lite.engines.nano import WEIGHTS
from kani_lite.exceptions import EngineError, PromptError
from kani_lite.messages import ChatMessage, ChatRole, ReasoningPart, ToolCall
from kani_lite.saving import SavedKani, save
from kani_lite.terminal import cli, prompt_input, prompt_source
from kani_lite.terminal.prompt_source import PromptSource, find_source
from kani_lite.terminal.prompt_view import visible

Run = Callable[..., tuple[int, str, str]]

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "user"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "function": {"name": "roll_dice", "arguments": '{"count":2}'}},
            {"id": "b", "function": {"name": "current_time", "arguments": {}}},
        ],
    },
    {"role": "tool", "tool_call_id": "a", "content": "7"},
    {"role": "tool", "tool_call_id": "b", "content": "Noon."},
    {"role": "assistant", "content": "It is noon."},
]
TOOLS = [
    {"type": "function", "function": {"name": "roll_dice", "description": "Roll.", "parameters": {"type": "object"}}},
    {"name": "current_time"},
]
PROMPT = """\
<|im_start|>system
Be brief.

# Tools
<tools>
{"name": "roll_dice", "description": "Roll.", "parameters": {"type": "object", "properties": {}, "required": []}}
{"name": "current_time", "description": "", "parameters": {"type": "object", "properties": {}, "required": []}}
</tools><|im_end|>
<|im_start|>user
user<|im_end|>
<|im_start|>assistant
<tool_call>
{"name": "roll_dice", "arguments": {"count": 2}}
</tool_call>
<tool_call>
{"name": "current_time", "arguments": {}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
7
</tool_response>
<tool_response>
Noon.
</tool_response><|im_end|>
<|im_start|>assistant
It is noon.<|im_end|>
"""
REPLY = "<|im_start|>assistant\n"
TABLE = """\
#  role       tokens  sum  text
   (tools)        37   37  roll_dice, current_time
0  system         11   48  Be brief.
1  user            6   54  user
2  assistant      32   86  roll_dice(count=2) current_time()
3  tool           10   96  7
4  tool            9  105  Noon.
5  assistant      11  116  It is noon.
"""


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program with these arguments; `tty`: on a terminal."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run_it(*arguments: str, text: str = "", tty: bool = False) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        terminal = Tty()
        with monkeypatch.context() as patch:
            if tty:
                patch.setattr("sys.stdout", terminal)
            status = cli.main(["prompt", *arguments])
        out, err = capsys.readouterr()
        return status, out + terminal.getvalue(), err

    return run_it


def write(path: Path, value: Any) -> str:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


# ==== what is printed ====


def test_in_a_pipe_the_prompt_is_exact_and_the_table_on_stderr(tmp_path: Path, run: Run) -> None:
    arguments = ["nano", write(tmp_path / "chat.json", MESSAGES), "--tools", write(tmp_path / "tools.json", TOOLS)]
    status, out, err = run(*arguments)
    assert (status, out) == (0, PROMPT + REPLY)
    assert err == TABLE + "   (reply)         3  119  <|im_start|>assistant\\n\n119 tokens.\n"
    assert run(*arguments, "--no-generation-prompt", "--context", "100") == (
        0,
        PROMPT,
        TABLE + "116 tokens: 16 more than the context of 100.\n",
    )


HI = [{"role": "user", "content": "\x1b[1mhi\u200b"}, {"role": "assistant", "content": "Hello!"}]


def test_on_a_terminal_each_role_has_its_colour(tmp_path: Path, run: Run) -> None:
    assert run("nano", write(tmp_path / "chat.json", HI), tty=True) == (
        0,
        "\x1b[2;32m<|im_start|>user\x1b[0m\n"
        "\x1b[32m\\x1b[1mhi\\u200b\x1b[0m\x1b[2;32m<|im_end|>\x1b[0m\n"
        "\x1b[2;36m<|im_start|>assistant\x1b[0m\n"
        "\x1b[36mHello!\x1b[0m\x1b[2;36m<|im_end|>\x1b[0m\n"
        "\x1b[2m<|im_start|>assistant\x1b[0m\n"
        "\n"
        "\x1b[1m#  role       tokens  sum  text\x1b[0m\n"
        "\x1b[32m0  user           13   13  \\x1b[1mhi\\u200b\x1b[0m\n"
        "\x1b[36m1  assistant       9   22  Hello!\x1b[0m\n"
        "\x1b[2m   (reply)         3   25  <|im_start|>assistant\\n\x1b[0m\n"
        "25 tokens.\n",
        "",
    )


PLAIN = r"""<|im_start|>user
\x1b[1mhi\u200b<|im_end|>
<|im_start|>assistant
Hello!<|im_end|>
<|im_start|>assistant

#  role       tokens  sum  text
0  user           13   13  \x1b[1mhi\u200b
1  assistant       9   22  Hello!
   (reply)         3   25  <|im_start|>assistant\n
25 tokens: 74 of the context of 99 are left.
"""


def test_on_a_terminal_without_colours(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["nano", write(tmp_path / "chat.json", HI), "--context", "99"]
    assert run(*arguments, "--no-color", tty=True) == (0, PLAIN, "")
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(*arguments, tty=True) == (0, PLAIN, "")


def test_a_named_format_counts_characters(tmp_path: Path, run: Run) -> None:
    chat = write(tmp_path / "chat.json", [{"role": "user", "content": "hi"}])
    assert run("chatml", chat) == (
        0,
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        "#  role     characters  sum  text\n"
        "0  user             30   30  hi\n"
        "   (reply)          22   52  <|im_start|>assistant\\n\n"
        "52 characters (a format has no tokenizer: name a model to count tokens).\n",
    )


def test_a_template_in_a_file(tmp_path: Path, run: Run) -> None:
    template = write(tmp_path / "a.jinja", "{% for m in messages %}{{ m.role }}: {{ m.content }}|{% endfor %}")
    chat = write(tmp_path / "chat.json", [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}])
    assert run(template, chat, tty=True)[1].splitlines()[0] == (
        "\x1b[2;32muser: \x1b[0m\x1b[32mhi\x1b[0m\x1b[2;32m|\x1b[0m"
        "\x1b[2;36massistant: \x1b[0m\x1b[36ma\x1b[0m\x1b[2;36m|\x1b[0m"
    )


def test_invisible_characters_are_shown() -> None:
    text = "a\tb\n\x00\x7f\u202e\u00a0\u3000\ufeff\u200d\U000e0041 é 漢 \U0001f980"
    shown = "a\tb\n\\x00\\x7f\\u202e\\xa0\\u3000\\ufeff\\u200d\\U000e0041 é 漢 \U0001f980"
    assert visible(text) == shown


def test_what_a_template_refuses_or_takes_back_is_not_counted(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(messages: list[ChatMessage], tools: bool) -> str:
        if len(messages) == 1 or not tools:
            raise PromptError("No.")
        kept = [m for m in messages if m.role is not ChatRole.ASSISTANT or m is messages[-1]]
        return "".join(f"[{m.role.value} {m.text}]" for m in kept)

    source = PromptSource(lambda messages, tools, _: forgetful(list(messages), bool(tools)), len, "characters")
    monkeypatch.setattr(prompt_source, "find_source", lambda name: source)
    chat = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user")]
    assert run("any", write(tmp_path / "chat.json", {"messages": chat, "tools": TOOLS})) == (
        0,
        "[system s][user u][user u]",
        "#  role       characters  sum  text\n"
        "   (tools)             -    -  roll_dice, current_time\n"
        "0  system              -    -  s\n"
        "1  user                -   18  u\n"
        "2  assistant          13   31  a\n"
        "3  user                -   26  u\n"
        "26 characters (a format has no tokenizer: name a model to count tokens).\n",
    )


def test_a_prompt_that_cannot_be_written_is_one_line(tmp_path: Path, run: Run) -> None:
    template = write(tmp_path / "a.jinja", "{{ raise_exception('no\x1b[1m') }}")
    status, out, err = run(template, write(tmp_path / "chat.json", HI))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "no\\x1b[1m" in err


# ==== what is read ====

CHAT = [
    ChatMessage.system("s"),
    ChatMessage.user("ab"),
    ChatMessage.assistant(
        [ReasoningPart(content="why"), ""],
        tool_calls=[
            ToolCall.from_function("f", call_id_="call_0", x="ü"),
            ToolCall.from_function("g", call_id_="b"),
        ],
    ),
    ChatMessage.function("f", "1", "call_0"),
]
CHAT[2].tool_calls[0].function.arguments = '{"x": "ü"}'  # type: ignore[index]
AS_OPENAI = [
    {"role": "developer", "content": "s"},
    {"role": "user", "content": [{"type": "text", "text": "a"}, "b"]},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "why",
        "tool_calls": [{"function": {"name": "f", "arguments": {"x": "ü"}}}, {"id": "b", "function": {"name": "g"}}],
    },
    {"role": "tool", "tool_call_id": "call_0", "content": "1"},
]


def test_messages_as_openai_has_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", AS_OPENAI)
    assert prompt_input.read_chat(path) == (CHAT, [])
    messages, tools = prompt_input.read_chat(write(tmp_path / "b.json", {"messages": AS_OPENAI, "tools": TOOLS}))
    assert messages == CHAT
    assert [(tool.name, tool.desc, tool.json_schema) for tool in tools] == [
        ("roll_dice", "Roll.", {"type": "object"}),
        ("current_time", None, {"type": "object", "properties": {}}),
    ]
    tools[0].inner()  # stands for nothing
    old = [{"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}]
    assert prompt_input.read_chat(write(tmp_path / "c.json", old))[0] == [
        ChatMessage.assistant(None, tool_calls=[ToolCall.from_function("f", call_id_="call_0")])
    ]


@pytest.mark.parametrize("name", ["chat.json", "chat.kani"])
def test_saved_chats(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, SavedKani(always_included_messages=CHAT[:1], chat_history=CHAT[1:]))
    assert prompt_input.read_chat(str(tmp_path / name)) == (CHAT, [])


def test_standard_input(run: Run) -> None:
    saved = SavedKani(always_included_messages=[], chat_history=[ChatMessage.user("hi")]).model_dump_json()
    for text in (saved, '[{"role": "user", "content": "hi"}]'):
        assert run("chatml", "-", text=text)[:2] == (0, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    damaged = run("chatml", "-", text='{"chat_history": 1}')
    assert damaged == (
        2,
        "",
        "kani-lite: The standard input is not a saved chat as JSON, or is damaged: give the file.\n",
    )


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ("[", "The file 'x' is not JSON: Expecting value: line 1 column 2 (char 1)"),
        ("[" * 100_000, "The file 'x' is not JSON: maximum recursion depth exceeded"),
        ("3", "The file 'x' is neither a saved chat nor a list of messages."),
        ("[]", "The file 'x' holds no messages."),
        ('{"chat_history": 1}', "'x' is not a saved chat, or is damaged: always_included_messages: Field required"),
        ([1], "The file 'x': message 0 is not an object with a role and content."),
        ([*AS_OPENAI, {"role": "bot"}], "The file 'x': message 4 has the unknown role 'bot': give system, user, "),
        ([{"content": "a"}], "The file 'x': message 0 has no role: give system, user, assistant or tool."),
        ([{"role": "user", "content": 1}], "The file 'x': message 0: its content is neither text nor a list of parts."),
        ([{"role": "user", "name": 1}], "The file 'x': message 0: its name is not text."),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            "The file 'x': message 0 has a part of the type 'image_url': only text can be shown.",
        ),
        ([{"role": "user", "content": [1]}], "The file 'x': message 0 has a part of the type None: only text can be "),
        ([{"role": "assistant", "tool_calls": 1}], "The file 'x': message 0: its tool_calls are not a list."),
        ([{"role": "assistant", "tool_calls": [1]}], "The file 'x': message 0, call 0 names no function."),
        (
            [{"role": "assistant", "tool_calls": [{"function": {}}]}],
            "The file 'x': message 0, call 0 names no function.",
        ),
        ({"messages": AS_OPENAI, "tools": 1}, "The file 'x' holds no list of tools."),
        (
            {"messages": AS_OPENAI, "tools": [{}]},
            "The file 'x': tool 0 is not an object with a name, a description and ",
        ),
        (
            {"messages": AS_OPENAI, "tools": [1]},
            "The file 'x': tool 0 is not an object with a name, a description and ",
        ),
        (
            {"messages": AS_OPENAI, "tools": [{"name": "f", "parameters": 1}]},
            "The file 'x': tool 0: its parameters are not a JSON schema.",
        ),
    ],
)
def test_files_that_are_no_chat(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, chat: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x", chat)
    status, out, err = run("nano", "x")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"kani-lite: {message}")


def test_files_that_cannot_be_read(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("nano", "x") == (2, "", "kani-lite: There is no file 'x'.\n")
    assert run("nano", ".") == (2, "", "kani-lite: The file '.' can't be read: Is a directory.\n")
    monkeypatch.setattr(prompt_input, "MAX_BYTES", 4)
    write(tmp_path / "x", "[[[]]]")
    assert run("nano", "x") == (2, "", "kani-lite: The file 'x' has more than 4 bytes.\n")


@pytest.mark.parametrize("source", ["nano", "chatml"])
@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "half \ud83e!"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": r'{"x": "half \ud83e"}'}}]},
    ],
)
def test_half_a_character_is_one_line(tmp_path: Path, run: Run, source: str, message: dict[str, Any]) -> None:
    status, out, err = run(source, write(tmp_path / "chat.json", [{"role": "user", "content": "hi"}, message]))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("kani-lite: The prompt has '\\ud83e' after ")
    assert "half '. That is a lone surrogate, half of a character, which has no tokens: take it out" in err


def test_half_a_character_in_a_saved_chat(tmp_path: Path, run: Run) -> None:
    saved = {"version": 1, "always_included_messages": [], "chat_history": [{"role": "user", "content": "a\ud83e"}]}
    status, out, err = run("nano", write(tmp_path / "chat.json", saved))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "is not a saved chat, or is damaged" in err


# ==== where the prompt comes from ====


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no", "There is no folder ./no."),
        ("a/b/c", "'a/b/c' is neither a folder nor a model's name on the hub, such as Qwen/Qwen3-0.6B."),
        ("no/such", "The model 'no/such' isn't on this disk and the hub can't be reached"),
        (
            "lama2",
            "There is no model 'lama2'. Nor is it a named format: alpaca, chatml, ",
        ),
        (
            "hermes",
            "'hermes' says how replies are read, and no template belongs to it: name a model, a .jinja file, or a "
            "format that has a template: alpaca, chatml, gemma, llama2, ",
        ),
        ("no.jinja", "The chat template 'no.jinja' can't be read: "),
        ("bad.jinja", "The chat template refuses these messages (user"),
        ("bare", "The tokenizer of 'bare' has no chat template: name a format, or a .jinja file."),
    ],
)
def test_no_such_source(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    from kani_lite.engines.huggingface import hub

    def refuse(model: str, options: dict[str, Any]) -> None:
        why = "isn't on this disk and the hub can't be reached" if "/" in model else ""
        raise EngineError(f"The model {model!r} {why}" if why else f"There is no model {model!r}.")

    monkeypatch.setattr(hub, "check_hub", refuse)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bad.jinja", "{{ 1 + '' }}")
    (tmp_path / "bare").mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / file).write_bytes((WEIGHTS / file).read_bytes())
    status, out, err = run(name, write(tmp_path / "chat.json", HI))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"kani-lite: {message}")


@pytest.mark.parametrize("name", ["chatml", "gemma", "llama2", "llama3", "mistral"])
def test_formats_with_a_template(tmp_path: Path, run: Run, name: str) -> None:
    from kani_lite.prompts import get_format

    status, out, _ = run(name, write(tmp_path / "chat.json", HI[:1]))
    assert (status, get_format(name).name) == (0, name)
    assert HI[0]["content"] in out


def test_a_folder_may_have_the_name_of_a_format(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hermes").mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "hermes" / file).write_bytes((WEIGHTS / file).read_bytes())
    monkeypatch.chdir(tmp_path)
    assert run("hermes", write(tmp_path / "chat.json", HI))[0] == 0


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Run) -> None:
    from kani_lite.terminal import loading

    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    status, _, err = run("nano", write(tmp_path / "chat.json", HI))
    assert status == 2
    assert err == (
        "kani-lite: A model needs the package 'torch', which isn't installed: pip install 'kani-lite[huggingface]'\n"
    )


def test_a_folder_needs_no_weights_and_a_model_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kani_lite.engines.huggingface import hub, loading

    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / file).write_bytes((WEIGHTS / file).read_bytes())
    source = find_source(str(tmp_path))
    assert (source.unit, source.count("<|im_start|>a")) == ("tokens", 2)

    asked: list[Any] = []
    load = loading.load_tokenizer

    def fetch(source: loading.Source, *arguments: Any) -> Any:
        asked.append(source)
        if source.options:
            raise EngineError("not fetched")
        return load(loading.Source(str(tmp_path), True, {"local_files_only": True}), *arguments)

    monkeypatch.setattr(loading, "load_tokenizer", fetch)
    monkeypatch.setattr(hub, "check_hub", lambda name, options: asked.append(name))
    assert find_source("some/model").unit == "tokens"
    assert asked == [
        loading.Source("some/model", False, {"local_files_only": True}),
        "some/model",
        loading.Source("some/model", False, {}),
    ]


def test_named_formats_begin_and_end_with_their_tokens() -> None:
    from kani_lite.prompts.templates import template_names

    assert set(prompt_source._ENDS) <= set(template_names())
    chat = [ChatMessage.user("a"), ChatMessage.assistant("b"), ChatMessage.user("c")]
    assert find_source("llama2").render(chat, [], True) == "<s>[INST] a [/INST] b </s><s>[INST] c [/INST]"
