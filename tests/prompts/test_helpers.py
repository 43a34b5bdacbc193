from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kani_lite.exceptions import PromptError
from kani_lite.messages import ChatMessage, FunctionCall, ToolCall
from kani_lite.prompts import helpers
from kani_lite.prompts.helpers import Persona, few_shot, fill, load_prompt


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


# ==== variables ====


def test_fill() -> None:
    assert fill("Hi {{ name }}, {{name}}! {{\tage }} {x} }}", name="Ada", age=36) == "Hi Ada, Ada! 36 {x} }}"


def test_a_value_is_not_looked_at_again() -> None:
    assert fill("{{ a }}{{ b }}", a="{{ b }}", b=r"\{{ a }} \1 \g<0>") == r"{{ b }}\{{ a }} \1 \g<0>"


def test_escapes() -> None:
    template = r"\{{ name }} \{{% x %}} \\{{ name }} \\\{{ name }} a\b \\ \{ {"
    assert fill(template, name="N") == r"{{ name }} {{% x %}} \N \{{ name }} a\b \\ \{ {"


@pytest.mark.parametrize(
    ("template", "variables", "message"),
    [
        (
            "Hi {{ nmae }}{{ town }}",
            {"name": "Ada", "town": "Ulm"},
            "The template uses the variable 'nmae', which isn't given: pass nmae=. Given: name, town.",
        ),
        ("{{ x }}", {}, "The template uses the variable 'x', which isn't given: pass x=. Given: none."),
        (
            "{{ b }}{{ a }}",
            {"a": 1, "b": 2, "c": 3},
            "The template doesn't use the variable 'c': leave it out. It uses: a, b.",
        ),
        (
            "{{ a }}{{ b }}",
            {"a": 1, "b": None},
            "The template uses the variable 'b', which is None: pass a text or a number, or ''.",
        ),
        (
            "one\n{{ a.b }}",
            {"a": 1},
            r"The template has braces in line 2 that are no variable: write {{ name }}, or \{{ where the braces "
            "themselves are meant.",
        ),
    ],
)
def test_a_template_and_its_variables_must_fit(template: str, variables: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=f"^{re.escape(message)}$"):
        fill(template, **variables)


@pytest.mark.parametrize(
    "braces", ["{{", "{{ 1 }}", "{{ a b }}", "{{{ a }}}", "{{\na }}", "{{ a }", "{{ f() }}", "{{ a|b }}"]
)
def test_braces_that_are_no_variable(braces: str) -> None:
    with pytest.raises(PromptError, match="no variable"):
        fill(braces, a=1)


@given(st.text().filter(lambda text: "{{" not in text))
def test_text_without_braces_stays_as_it_is(text: str) -> None:
    assert fill(text) == text


@given(st.text())
def test_any_text_can_be_escaped(text: str) -> None:
    escaped = re.sub(r"(\\*)\{\{", lambda match: match[1] * 2 + r"\{{", text)
    assert fill(escaped) == text


class Trap:
    """Fails if anything of it but its text is asked for."""

    def __str__(self) -> str:
        return "text"

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")

    def __getitem__(self, key: object) -> Any:
        raise AssertionError(f"{key} was asked for")


@given(st.text(alphabet="a.{}[]()_%!:|\\ \n0'\"$", max_size=30), st.text())
def test_nothing_is_ever_evaluated(text: str, value: str) -> None:
    template = text + "{{ a }}"
    try:
        filled = fill(template, a="V")
    except PromptError:
        return
    assert "V" in filled
    assert fill(template, a=value) == filled.replace("V", value)
    assert fill(template, a=Trap()) == filled.replace("V", "text")  # type: ignore[arg-type]  # not a value


def test_load_prompt(tmp_path: Path) -> None:
    path = write(tmp_path / "cook.md", "\ufeff\n# Cook\r\n\r\nYou cook for {{ who }}. \n\n")
    assert load_prompt(path, who="Ada") == "\n# Cook\n\nYou cook for Ada. "
    assert load_prompt(str(write(tmp_path / "path.txt", "{{ path }}{{ template }}")), path="a", template="b") == "ab"


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.md", "{{ a }}")
    with pytest.raises(PromptError, match=f"^The file {re.escape(repr(str(path)))} uses the variable 'a', which isn't"):
        load_prompt(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x" * (2**20 + 1), "The file {} has more than 1,048,576 bytes: no prompt is that long. Shorten it."),
        (b"ab\xff", "The file {} is not UTF-8 (byte 2): save it as UTF-8 text."),
        (None, "There is no file {} (looked in {}): check its path."),
    ],
)
def test_files_that_are_no_prompt(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "prompt.txt"
    if content is not None:
        path.write_bytes(content)
    expected = message.format(repr(str(path)), repr(os.getcwd()))
    for load in (load_prompt, Persona.load):
        with pytest.raises(PromptError, match=f"^{re.escape(expected)}$"):
            load(path)


@pytest.mark.parametrize("name", ["a.md", "a.json"])
def test_none_is_no_value_for_a_file(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, '{"system_prompt": "Cook for {{ who }}."}')
    missing: Any = None
    with pytest.raises(PromptError, match=r"uses the variable 'who', which is None: pass a text or a number, or ''\.$"):
        Persona.load(path, who=missing)


def test_a_folder_is_no_prompt_and_the_largest_file_is_one(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"can't be read: Is a directory\.$"):
        load_prompt(tmp_path)
    assert len(load_prompt(write(tmp_path / "a", "x" * helpers.MAX_BYTES))) == 2**20


# ==== examples ====


def test_pairs_and_messages() -> None:
    system = ChatMessage.system("Be brief.")
    assert few_shot(
        [("hi", "hello"), system, ["a", "b", "c", "d"], (ChatMessage.user("x"), ChatMessage.assistant("y"))]
    ) == [
        ChatMessage.user("hi"),
        ChatMessage.assistant("hello"),
        system,
        ChatMessage.user("a"),
        ChatMessage.assistant("b"),
        ChatMessage.user("c"),
        ChatMessage.assistant("d"),
        ChatMessage.user("x"),
        ChatMessage.assistant("y"),
    ]
    assert few_shot([]) == []
    assert few_shot([(system, "hi", "hello")])[1:] == [ChatMessage.user("hi"), ChatMessage.assistant("hello")]


def test_calls_and_results() -> None:
    dice = ToolCall.from_function("roll", call_id_="mine", sides=6)
    messages = few_shot(
        [
            ("2 + 2?", FunctionCall.with_args("calculate", expression="2 + 2"), "4", "It is 4."),
            ("roll two", dice, FunctionCall.with_args("roll", sides=8), "3", "7", "3 and 7."),
            ("again", dice, ChatMessage.function("roll", "1"), dice, "2", "1, then 2."),
        ],
        functions=True,
    )
    second = ToolCall.from_function("roll", call_id_="ex0000002", sides=8)
    assert messages == [
        ChatMessage.user("2 + 2?"),
        ChatMessage.assistant(
            None, tool_calls=[ToolCall.from_function("calculate", call_id_="ex0000001", expression="2 + 2")]
        ),
        ChatMessage.function("calculate", "4", "ex0000001"),
        ChatMessage.assistant("It is 4."),
        ChatMessage.user("roll two"),
        ChatMessage.assistant(None, tool_calls=[dice, second]),
        ChatMessage.function("roll", "3", "mine"),
        ChatMessage.function("roll", "7", "ex0000002"),
        ChatMessage.assistant("3 and 7."),
        ChatMessage.user("again"),
        ChatMessage.assistant(None, tool_calls=[dice]),
        ChatMessage.function("roll", "1", "mine"),
        ChatMessage.assistant(None, tool_calls=[dice]),
        ChatMessage.function("roll", "2", "mine"),
        ChatMessage.assistant("1, then 2."),
    ]


def test_results_may_come_in_any_order_if_they_say_of_which_call() -> None:
    calls = [ToolCall.from_function("f", call_id_=name) for name in "ab"]
    messages = few_shot(
        [("go", ChatMessage.assistant("Both:", tool_calls=calls), ChatMessage.function("f", "2", "b"), "1", "done")],
        functions=True,
    )
    assert messages[2:] == [
        ChatMessage.function("f", "2", "b"),
        ChatMessage.function("f", "1", "a"),
        ChatMessage.assistant("done"),
    ]


CALL = FunctionCall.with_args("f")


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ("hi", "Example 1 is 'hi': give a pair (input, output), or a ChatMessage."),
        (("hi",), "Example 1 is ('hi',): give a pair (input, output), or a ChatMessage."),
        (["x" * 99], f"Example 1 is ['{'x' * 55}...: give a pair (input, output), or a ChatMessage."),
        (3, "Example 1 is 3: give a pair (input, output), or a ChatMessage."),
        (("hi", 3), "Example 1 holds 3: give texts, calls and ChatMessages."),
        (("hi", "hello", "bye"), "Example 1 ends with a message of the user: end it with the answer."),
        (("hi", CALL, "1"), "Example 1 ends with a message of the function: end it with the answer."),
        (("hi", CALL), "Example 1 has no result for its call of 'f': put it after the call."),
        ((CALL, "1"), "Example 1 begins with a call: begin it with what the user says."),
        ((ChatMessage.system("x"), CALL), "Example 1 begins with a call: begin it with what the user says."),
    ],
)
def test_wrong_examples(example: Any, message: str) -> None:
    with pytest.raises(PromptError, match=f"^{re.escape(message)}$"):
        few_shot([("hi", "hello"), example], functions=True)


@pytest.mark.parametrize(
    "example", [("hi", CALL, "1", "one"), ChatMessage.assistant(None, tool_calls=[ToolCall.from_function("f")])]
)
def test_calls_are_refused_where_there_are_no_functions(example: Any) -> None:
    with pytest.raises(PromptError, match=r"^Example 0 calls 'f': pass functions=True if the model is given functions"):
        few_shot([example])


# ==== personas ====

PERSONA = {
    "name": "Cook",
    "system_prompt": "You cook for {{ who }}.",
    "examples": [
        {"input": "hi", "output": "Hello, {{ who }}!"},
        {
            "input": "weather?",
            "calls": [
                {"name": "f", "arguments": {"of": ["{{ who }}", 1]}, "result": "rain"},
                {"name": "g", "result": ""},
            ],
            "output": "Rain.",
        },
    ],
}
TOML = """
name = "Cook"
system_prompt = "You cook for {{ who }}."
[[examples]]
input = "hi"
output = "Hello, {{ who }}!"
[[examples]]
input = "weather?"
output = "Rain."
calls = [{name = "f", arguments = {of = ["{{ who }}", 1]}, result = "rain"}, {name = "g", result = ""}]
"""


@pytest.mark.parametrize(("name", "text"), [("a.json", json.dumps(PERSONA)), ("a.toml", TOML)])
def test_persona_from_a_file_with_examples(tmp_path: Path, name: str, text: str) -> None:
    persona = Persona.load(write(tmp_path / name, text), who="Ada")
    calls = [
        ToolCall.from_function("f", call_id_="ex0000001", of=["Ada", 1]),
        ToolCall.from_function("g", call_id_="ex0000002"),
    ]
    assert persona == Persona(
        "Cook",
        "You cook for Ada.",
        (
            ChatMessage.user("hi"),
            ChatMessage.assistant("Hello, Ada!"),
            ChatMessage.user("weather?"),
            ChatMessage.assistant(None, tool_calls=calls),
            ChatMessage.function("f", "rain", "ex0000001"),
            ChatMessage.function("g", "", "ex0000002"),
            ChatMessage.assistant("Rain."),
        ),
    )
    messages = persona.messages()
    assert messages == [ChatMessage.system("You cook for Ada."), *persona.examples]
    messages[1].content = "changed"
    assert persona.examples[0].text == "hi"


def test_persona_from_text(tmp_path: Path) -> None:
    assert Persona.load(write(tmp_path / "cook.md", "You cook {{ what }}.\n"), what="soup") == Persona(
        "cook", "You cook soup."
    )
    assert Persona.load(write(tmp_path / "b.json", '{"system_prompt": "x"}')) == Persona("b", "x")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "", "is no persona by its name: it must end in .json, .toml, .md or .txt."),
        ("a.json", "{", "is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("a.json", "[" * 100_000, "is not JSON: maximum recursion depth exceeded"),
        ("a.toml", "= 1", "is not TOML: Invalid "),
        ("a.json", "[]", "is not a persona: Input should be "),
        ("a.json", "{}", "is not a persona: system_prompt: Field required"),
        ("a.json", '{"system_prompt": "", "sytem": 1}', "is not a persona: sytem: Extra inputs are not permitted"),
        (
            "a.json",
            '{"system_prompt": "", "examples": [{"input": 1, "output": ""}]}',
            "is not a persona: examples.0.input: Input should be a valid string",
        ),
        (
            "a.json",
            '{"system_prompt": "{{ b }}", "name": "{{ a }}"}',
            "uses the variable 'a', which isn't given: pass a=. Given: b.",
        ),
        ("a.json", '{"system_prompt": ""}', "doesn't use the variable 'b': leave it out. It uses: none."),
    ],
)
def test_files_that_are_no_persona(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path / name, text)
    variables = {"b": 1} if "variable" in message else {}
    with pytest.raises(PromptError, match=f"^{re.escape(f'The file {str(path)!r} {message}')}"):
        Persona.load(path, **variables)
