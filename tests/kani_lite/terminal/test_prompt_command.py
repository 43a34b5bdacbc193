from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kani_lite.engines.nano import WEIGHTS
from kani_lite.exceptions import EngineError, PromptError
from kani_lite.messages import ChatMessage, ChatRole, ReasoningPart, ToolCall
from kani_lite.saving import SavedKani, save
from kani_lite.terminal import cli, prompt_input, prompt_source
from kani_lite.terminal.prompt_parts import Counts, Piece, analyse
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


# ==== which part comes of which message ====


Write = Callable[[list[ChatMessage], bool], str]


def source_of(write: Write) -> PromptSource:
    """A source that writes these messages, with tools or without."""
    return PromptSource(lambda messages, functions, _: write(list(messages), bool(functions)), len, "characters")


def plain(messages: list[ChatMessage], tools: bool = False) -> str:
    return "".join(f"[{m.role.value} {m.text}]" for m in messages)


def contents(write: Write, *texts: str) -> list[str]:
    """What is found of user messages with these texts."""
    prompt = analyse(source_of(write), [ChatMessage.user(text) for text in texts], [], True)
    assert "".join(piece.text for piece in prompt.pieces) == prompt.text
    return [piece.text for piece in prompt.pieces if piece.content]


def test_a_system_text_that_is_written_with_the_question() -> None:
    def held_back(messages: list[ChatMessage], tools: bool) -> str:
        system, *others = (m.text for m in messages)
        return "".join(f"[{'' if i else system}|{text}]" for i, text in enumerate(others))

    messages = [ChatMessage.system("s"), ChatMessage.user("u"), ChatMessage.assistant("a")]
    prompt = analyse(source_of(held_back), messages, [], True)
    assert prompt.counts == Counts([None, 5, 9], 0, 9)
    assert prompt.pieces == [
        Piece("[", 0, False),
        Piece("s", 0, True),
        Piece("|", 1, False),
        Piece("u", 1, True),
        Piece("]", 1, False),
        Piece("[|", 2, False),
        Piece("a", 2, True),
        Piece("]", 2, False),
    ]


def test_what_a_template_refuses_or_takes_back_is_not_counted(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(messages: list[ChatMessage], tools: bool) -> str:
        if len(messages) == 1 or not tools:
            raise PromptError("No.")
        return plain([m for m in messages if m.role is not ChatRole.ASSISTANT or m is messages[-1]])

    monkeypatch.setattr(prompt_source, "find_source", lambda name: source_of(forgetful))
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


def test_texts_are_found_as_templates_write_them() -> None:
    assert contents(plain, "user", " a ") == ["user", " a "]
    assert contents(lambda messages, _: "".join(f"[user {(m.text or '').strip()}]" for m in messages), "r", " a ") == [
        "r",
        "a",
    ]
    assert contents(lambda messages, _: json.dumps([m.text for m in messages]), "\n", "ü\n") == ["\\n", "\\u00fc\\n"]
    assert contents(plain, "", " ") == [" "]


def test_a_text_is_not_taken_for_markup() -> None:
    prompt = analyse(source_of(plain), [ChatMessage.user("user")], [], True)
    assert prompt.pieces == [Piece("[user ", 0, False), Piece("user", 0, True), Piece("]", 0, False)]


def test_where_texts_are_treated_by_what_they_say_they_are_searched_for() -> None:
    def refuses(messages: list[ChatMessage], tools: bool) -> str:
        if any("Mark" in (m.text or "") for m in messages):
            raise PromptError("No.")
        return plain(messages)

    assert contents(refuses, "user", "b") == ["user", "b"]
    short_only = contents(lambda messages, _: plain([m for m in messages if len(m.text or "") < 5]), "ab", "cd")
    assert short_only == ["ab", "cd"]
    assert contents(lambda messages, _: "".join((m.text or "").upper() for m in messages), "ab") == []
    longer = contents(lambda messages, _: plain(messages) + ("!" if len(messages[0].text or "") < 5 else ""), "ab")
    assert longer == ["ab"]


def test_texts_out_of_order_are_found_as_far_as_possible() -> None:
    assert contents(lambda messages, _: plain(messages[::-1]), "ab", "cd") == ["ab"]
    repeated = contents(lambda messages, _: plain(messages * 2 if len(messages) == 1 else messages), "ab", "ab")
    assert repeated == ["ab"]
    last_only = contents(lambda messages, _: plain(messages[-1:]), "ab", "cd")
    assert last_only == ["cd"]


def test_thoughts_and_calls_are_found() -> None:
    calls = [ToolCall.from_function("f", x=1, y="ü"), ToolCall.from_function("g"), ToolCall.from_function("hidden")]
    calls[1].function.arguments = "broken"
    message = ChatMessage.assistant([ReasoningPart(content="why"), "so"], tool_calls=calls)

    def compact(messages: list[ChatMessage], tools: bool) -> str:
        return '<why>so(f {"x":1,"y":"ü"})(g broken)' * len(messages)

    prompt = analyse(source_of(compact), [message], [], True)
    found = [piece.text for piece in prompt.pieces if piece.content]
    assert found == ["why", "so", "f", '{"x":1,"y":"ü"}', "g", "broken"]


@given(st.lists(st.sampled_from(["", " ", "a", "user", "[", "]]", "ab", " b\n"]), min_size=1, max_size=6))
def test_the_pieces_make_the_prompt(texts: list[str]) -> None:
    assert contents(plain, *texts) == [text for text in texts if text]


def test_named_formats_begin_and_end_with_their_tokens() -> None:
    from kani_lite.prompts.templates import template_names

    assert set(prompt_source._ENDS) <= set(template_names())
    chat = [ChatMessage.user("a"), ChatMessage.assistant("b"), ChatMessage.user("c")]
    assert find_source("llama2").render(chat, [], True) == "<s>[INST] a [/INST] b </s><s>[INST] c [/INST]"
