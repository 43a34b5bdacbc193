"""What a prompt is made of besides a format: few-shot examples, and system prompts and personas from files.

A text may have variables: `{{ name }}`, replaced once by a value's text. Nothing is evaluated, and what a value holds
is not looked at again. `\\{{` stands for two braces, and `\\\\` before braces for a backslash.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import pydantic

from kani_lite.exceptions import PromptError
from kani_lite.messages import ChatMessage, ChatRole, FunctionCall, ToolCall

MAX_BYTES = 2**20
"""The largest file that is read as a prompt or a persona."""

Value: TypeAlias = str | int | float
"""What a variable may stand for; it is written as `str` writes it."""

Turn: TypeAlias = str | ChatMessage | FunctionCall | ToolCall
"""One step of an example: see `few_shot`."""

_OPENING = re.compile(r"(?<!\\)(\\*)\{\{(?:[ \t]*([A-Za-z_]\w*)[ \t]*\}\})?")


# ==== variables ====


def fill(template: str, /, **variables: Value) -> str:
    """The template with `{{ name }}` replaced by the variable of that name, each as often as it occurs.

    Raises PromptError if the template uses a variable that isn't given or is None, if one is given that it doesn't use,
    and if `{{` begins no variable: write `\\{{` where the braces themselves are meant.
    """
    return _fill(template, variables, "The template")


def load_prompt(path: str | os.PathLike[str], /, **variables: Value) -> str:
    """The text of a file, filled as by `fill`, without the line breaks at its end: a system prompt, say.

    Raises PromptError as `fill` does, and if the file can't be read, isn't UTF-8 or has more than 1 MiB.
    """
    return _fill(_read(path), variables, f"The file {os.fspath(path)!r}")


def _fill(template: str, variables: Mapping[str, Value], where: str) -> str:
    _check_variables(_names_in(template, where), variables, where)
    return _replaced(template, variables)


def _names_in(template: str, where: str) -> set[str]:
    names = set()
    for match in _OPENING.finditer(template):
        if len(match[1]) % 2:
            continue
        if match[2] is None:
            line = template.count("\n", 0, match.start()) + 1
            raise PromptError(
                f"{where} has braces in line {line} that are no variable: write {{{{ name }}}}, or \\{{{{ where the "
                "braces themselves are meant."
            )
        names.add(match[2])
    return names


def _check_variables(used: set[str], variables: Mapping[str, object], where: str) -> None:
    for name in sorted(used - variables.keys()):
        raise PromptError(
            f"{where} uses the variable {name!r}, which isn't given: pass {name}=. Given: {_listed(variables)}."
        )
    for name in sorted(variables.keys() - used):
        raise PromptError(f"{where} doesn't use the variable {name!r}: leave it out. It uses: {_listed(used)}.")
    for name, value in variables.items():
        if value is None:  # a value that is missing; the prompt would say "None"
            raise PromptError(f"{where} uses the variable {name!r}, which is None: pass a text or a number, or ''.")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _replaced(template: str, variables: Mapping[str, Value]) -> str:
    def replace(match: re.Match[str]) -> str:
        backslashes = match[1][: len(match[1]) // 2]
        if len(match[1]) % 2:
            return backslashes + match[0][len(match[1]) :]  # the braces, and whatever stands between them
        return f"{backslashes}{variables[match[2]]}"

    return _OPENING.sub(replace, template)


def _read(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise PromptError(f"There is no file {name!r} (looked in {os.getcwd()!r}): check its path.") from None
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        raise PromptError(f"The file {name!r} can't be read: {getattr(error, 'strerror', error)}.") from error
    if len(data) > MAX_BYTES:
        raise PromptError(f"The file {name!r} has more than {MAX_BYTES:,} bytes: no prompt is that long. Shorten it.")
    try:
        text = data.decode("utf-8-sig")  # without the mark that some editors put first
    except UnicodeDecodeError as error:
        raise PromptError(f"The file {name!r} is not UTF-8 (byte {error.start}): save it as UTF-8 text.") from None
    return text.replace("\r\n", "\n").rstrip("\n")


# ==== examples ====


def few_shot(examples: Iterable[ChatMessage | Sequence[Turn]], *, functions: bool = False) -> list[ChatMessage]:
    """Examples of what to answer, as messages: for `always_included_messages`, or the start of a `chat_history`.

    An example is a pair of what the user says and what the model answers, or more such turns in their order. With
    `functions`, calls may stand between them, each followed by its result; calls next to each other are made at once::

        few_shot([("What is 2 + 2?", FunctionCall.with_args("calculate", expression="2 + 2"), "4", "It is 4.")],
                 functions=True)

    A ChatMessage, in an example or instead of one, is taken as it is; a result without an id gets that of its call.
    Raises PromptError, with the example's index, if one doesn't end with an answer, or leaves a call without a result.
    """
    builder = _Examples(functions)
    for index, example in enumerate(examples):
        builder.where = f"Example {index}"
        builder.add(example)
    return builder.messages


class _Examples:
    """The messages of the examples so far. `where` names the example that is being added."""

    def __init__(self, functions: bool) -> None:
        self.messages: list[ChatMessage] = []
        self.where = ""
        self._functions = functions
        self._waiting: list[ToolCall] = []  # calls without a result
        self._count = 0

    def add(self, example: ChatMessage | Sequence[Turn]) -> None:
        if isinstance(example, ChatMessage):
            self.messages.append(self._checked(example))
            return
        if isinstance(example, str) or not _is_sequence(example) or len(example) < 2:
            raise PromptError(f"{self.where} is {_short(example)}: give a pair (input, output), or a ChatMessage.")
        start = len(self.messages)
        for turn in example:
            self._add_turn(turn, first=len(self.messages) == start)
        if self._waiting:
            raise PromptError(
                f"{self.where} has no result for its call of {self._waiting[0].function.name!r}: put it after the call."
            )
        if self.messages[-1].role is not ChatRole.ASSISTANT:
            raise PromptError(
                f"{self.where} ends with a message of the {self.messages[-1].role.value}: end it with the answer."
            )

    def _add_turn(self, turn: Turn, *, first: bool) -> None:
        match turn:
            case ChatMessage():
                self._add_message(turn)
            case ToolCall():
                self._add_call(turn, first=first)
            case FunctionCall():
                self._count += 1
                # nine letters and digits: the templates of Mistral accept no other ids
                self._add_call(ToolCall.from_function_call(turn, f"ex{self._count:07}"), first=first)
            case str():
                self._add_message(self._message_of(turn, first=first))
            case _:
                raise PromptError(f"{self.where} holds {_short(turn)}: give texts, calls and ChatMessages.")

    def _message_of(self, text: str, *, first: bool) -> ChatMessage:
        if self._waiting:
            return ChatMessage.function(self._waiting[0].function.name, text, self._waiting[0].id)
        if first or self.messages[-1].role in (ChatRole.ASSISTANT, ChatRole.SYSTEM):
            return ChatMessage.user(text)
        return ChatMessage.assistant(text)

    def _add_message(self, message: ChatMessage) -> None:
        message = self._checked(message)
        if message.role is ChatRole.FUNCTION and self._waiting:
            call = next((call for call in self._waiting if call.id == message.tool_call_id), self._waiting[0])
            self._waiting.remove(call)
            if message.tool_call_id is None:
                message = message.copy_with(tool_call_id=call.id)
        self._waiting += message.tool_calls or ()
        self.messages.append(message)

    def _add_call(self, call: ToolCall, *, first: bool) -> None:
        last = None if first else self.messages[-1]
        if last is None or last.role is ChatRole.SYSTEM:
            raise PromptError(f"{self.where} begins with a call: begin it with what the user says.")
        if self._waiting and last.tool_calls:
            del self.messages[-1]  # both calls are made at once, in one message
            self._waiting = []
            self._add_message(last.copy_with(tool_calls=[*last.tool_calls, call]))
        else:
            self._add_message(ChatMessage.assistant(None, tool_calls=[call]))

    def _checked(self, message: ChatMessage) -> ChatMessage:
        if message.tool_calls and not self._functions:
            raise PromptError(
                f"{self.where} calls {message.tool_calls[0].function.name!r}: pass functions=True if the model is "
                "given functions, or leave the call out."
            )
        return message


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence)  # asked here: its type says that it is


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ==== personas ====


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class _CallInFile(_Strict):
    name: str
    arguments: dict[str, Any] = pydantic.Field(default_factory=dict)
    result: str


class _ExampleInFile(_Strict):
    input: str
    calls: list[_CallInFile] = pydantic.Field(default_factory=list)
    output: str

    def turns(self) -> Iterator[Turn]:
        yield self.input
        yield from (FunctionCall.with_args(call.name, **call.arguments) for call in self.calls)
        yield from (call.result for call in self.calls)
        yield self.output


class _PersonaInFile(_Strict):
    name: str | None = None
    system_prompt: str
    examples: list[_ExampleInFile] = pydantic.Field(default_factory=list)


@dataclass(frozen=True)
class Persona:
    """Who the model is to be: `Kani(engine, always_included_messages=persona.messages())`, or, in parts,
    `Kani(engine, system_prompt=persona.system_prompt, always_included_messages=[*persona.examples])`."""

    name: str
    system_prompt: str
    examples: tuple[ChatMessage, ...] = ()

    @classmethod
    def load(cls, path: str | os.PathLike[str], /, **variables: Value) -> Self:
        """A persona from a file; its name is the file's unless that says otherwise.

        A `.md` or `.txt` file is the system prompt. A `.json` or `.toml` file has the keys `system_prompt`, and if
        wanted `name` and `examples`: each with `input`, `output`, and if wanted `calls`, which are made at once, each
        with `name`, `arguments` and `result`. All texts in it may have variables, as in `fill`.

        Raises PromptError as `load_prompt` does, and if the file has another end or isn't what is described here.
        """
        file = Path(path)
        where = f"The file {os.fspath(path)!r}"
        if file.suffix in (".md", ".txt"):
            return cls(file.stem, load_prompt(path, **variables))
        if file.suffix not in _PARSERS:
            raise PromptError(f"{where} is no persona by its name: it must end in .json, .toml, .md or .txt.")
        try:
            data = _PARSERS[file.suffix](_read(path))
            made = _PersonaInFile.model_validate(_fill_all(data, variables, where))
        except pydantic.ValidationError as error:
            raise PromptError(f"{where} is not a persona: {_reason(error)}") from None
        except (ValueError, RecursionError) as error:
            raise PromptError(f"{where} is not {file.suffix[1:].upper()}: {error}") from None
        examples = few_shot([[*example.turns()] for example in made.examples], functions=True)
        return cls(made.name or file.stem, made.system_prompt, tuple(examples))

    def messages(self) -> list[ChatMessage]:
        """The system prompt and the examples: copies, which may be changed."""
        return [ChatMessage.system(self.system_prompt), *(m.model_copy(deep=True) for m in self.examples)]


_PARSERS: dict[str, Callable[[str], Any]] = {".json": json.loads, ".toml": tomllib.loads}


def _fill_all(data: Any, variables: Mapping[str, Value], where: str) -> Any:
    """The data with all texts in it filled; a variable must be used in one of them."""
    used: set[str] = set()
    _mapped(data, lambda text: used.update(_names_in(text, where)))
    _check_variables(used, variables, where)
    return _mapped(data, lambda text: _replaced(text, variables))


def _mapped(data: Any, change: Callable[[str], Any]) -> Any:
    if isinstance(data, str):
        return change(data)
    if isinstance(data, dict):
        return {key: _mapped(value, change) for key, value in data.items()}
    return [_mapped(value, change) for value in data] if isinstance(data, list) else data


def _reason(error: pydantic.ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
