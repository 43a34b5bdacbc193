"""A recording of an engine: its requests and replies as JSON values, and the file that holds them.

The file has JSON lines: a header with the version and what was counted, and one line for each call with its request and
all that came back. Reading one builds plain values only and executes nothing of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from inspect import signature
from pathlib import Path
from typing import Any

import pydantic

from kani_lite import exceptions
from kani_lite.events import Delta, ReasoningDelta, TextDelta, ToolCallDelta, ToolCallFinished, ToolCallStarted
from kani_lite.exceptions import EngineError
from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage, ToolCall
from kani_lite.new_files import write_atomically

from .base import BaseCompletion, Completion
from .openai.errors import ServerError

FORMAT, VERSION = "kani_lite.recording", 1
_DELTAS: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (TextDelta, ReasoningDelta, ToolCallStarted, ToolCallDelta, ToolCallFinished)
}
# what a recorded error may become again; any other is an EngineError with its name
_ERRORS: dict[str, type[Exception]] = {
    cls.__name__: cls
    for cls in (
        exceptions.PromptTooLong,
        exceptions.MessageTooLong,
        exceptions.PromptError,
        exceptions.MissingModelDependencies,
        exceptions.EngineError,
        ServerError,
        NotImplementedError,
        TimeoutError,
        ConnectionError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    )
}
_SAID = {"temporary", "status", "retry_after"}  # by an error, for what tries again
# all that a completion has of plain values
_FIGURES = [name for name in signature(Completion).parameters if name not in ("message", "logprobs")]


class Record:
    """One call, while it happens. Its attributes are what a line of the file holds."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.items: list[Any] = []
        self.completion: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None
        self.end = "broken off"  # unless it gets further

    def add(self, item: str | Delta | BaseCompletion) -> None:
        if isinstance(item, BaseCompletion):
            self.completion, self.end = _completion_record(item), "done"
        else:
            self.items.append(item if isinstance(item, str) else {"delta": type(item).__name__, **_fields(item)})

    def fail(self, error: Exception) -> None:
        known = next((cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _ERRORS), "EngineError")
        name = type(error).__name__
        self.error = {"type": known, "text": str(error) if name == known else f"{name}: {error}"}
        self.error |= {key: value for key in _SAID if (value := getattr(error, key, None)) is not None}
        self.end = "error"


@dataclass(frozen=True)
class RecordedCall:
    """A recorded call, read back. `request` has plain ids."""

    line: int
    request: dict[str, Any]
    items: list[str | Delta]
    completion: Completion | None
    error: Mapping[str, Any] | None
    end: str

    def check_end(self) -> None:
        """Raises what the call failed with, or EngineError if it was broken off."""
        if self.error is not None:
            error = _ERRORS[self.error["type"]](self.error["text"])
            for key in _SAID & self.error.keys():
                setattr(error, key, self.error[key])
            raise error
        if self.end == "broken off":
            raise EngineError(
                f"The call in line {self.line} was broken off here when it was recorded, so nothing more is known: "
                "record it to its end, or break it off as well."
            )


def read_recording(path: Path) -> tuple[dict[str, Any], list[RecordedCall]]:
    """The header and the calls of a file. Raises EngineError if it can't be read, is damaged, or of another version."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"The recording {str(path)!r} can't be read ({error}): record it first.") from error
    number = 1
    try:
        header = json.loads(lines[0])
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']!r}")
        if header["version"] != VERSION:
            raise EngineError(
                f"{path.name} has version {header['version']!r} of the format, and this package reads {VERSION}: "
                "record anew."
            )
        missing = {"max_context_size", "counts_exactly", "reuses_prefix", "disable_function_calling_kwargs", "counts"}
        if missing := missing - set(header):
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        calls = []
        for number, line in enumerate(lines[1:], 2):
            calls.append(_call_of(number, json.loads(line)))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise EngineError(
            f"{str(path)!r} is no recording, or is damaged, at line {number} ({type(error).__name__}: {error}): "
            "record anew."
        ) from error
    return header, calls


def _call_of(number: int, record: dict[str, Any]) -> RecordedCall:
    error = record["error"]
    if error is not None and error["type"] not in _ERRORS:
        raise ValueError(f"unknown error {error['type']!r}")
    items = [item if isinstance(item, str) else _delta_of(item) for item in record["items"]]
    completion = record["completion"] and _completion_of(record["completion"])
    return RecordedCall(number, with_plain_ids(record["request"]), items, completion, error, record["end"])


def write_recording(path: Path, text: str) -> None:
    """Beside the file, and renamed: whoever reads it gets the old one or the new one. Raises EngineError, OSError."""
    if not path.parent.is_dir():
        raise EngineError(
            f"The folder {str(path.parent)!r} of the recording doesn't exist: make it, and call save() again."
        )
    write_atomically(path, lambda file: file.write(text.encode()))


# ==== values as JSON ====


def request_of(
    messages: Iterable[ChatMessage], functions: Iterable[AIFunction] | None, hyperparams: Mapping[str, Any]
) -> dict[str, Any]:
    """A request as JSON values. Hyperparameters that JSON can't hold are left out."""
    known = {name: _as_json(value) for name, value in sorted(hyperparams.items())}
    return {
        "messages": [message_record(message) for message in messages],
        "functions": [
            {"name": f.name, "desc": f.desc, "json_schema": json.loads(json.dumps(f.json_schema, default=str))}
            for f in functions or ()
        ],
        "hyperparams": {name: value[0] for name, value in known.items() if value},
    }


def _as_json(value: Any) -> tuple[Any] | None:
    if isinstance(value, pydantic.BaseModel):
        value = value.model_dump(mode="json", exclude_unset=True)
    try:
        return (json.loads(json.dumps(value, allow_nan=False)),)
    except (TypeError, ValueError):
        return None


def with_plain_ids(request: dict[str, Any]) -> dict[str, Any]:
    """The same with ids of tool calls counted from the first on: they are made anew in each run."""
    plain: dict[str, str] = {}

    def of(id_: str) -> str:
        return plain.setdefault(id_, f"call {len(plain)}")

    messages = []
    for message in request["messages"]:
        changed = dict(message)
        if "tool_calls" in message:
            changed["tool_calls"] = [{**call, "id": of(call["id"])} for call in message["tool_calls"]]
        if "tool_call_id" in message:
            changed["tool_call_id"] = of(message["tool_call_id"])
        messages.append(changed)
    return {**request, "messages": messages}


def difference(recorded: Any, now: Any, where: str = "") -> str:
    """Where two JSON values differ first, in words; "" if they don't."""
    if isinstance(recorded, dict) and isinstance(now, dict):
        for key in [*recorded, *(key for key in now if key not in recorded)]:
            place = f"{where}.{key}" if where else str(key)
            if key not in now:
                return f"{place}, recorded as {_short(recorded[key])}, missing now"
            if key not in recorded:
                return f"{place}, now {_short(now[key])}, not there when it was recorded"
            if found := difference(recorded[key], now[key], place):
                return found
        return ""
    if isinstance(recorded, list) and isinstance(now, list):
        for index, (old, new) in enumerate(zip(recorded, now, strict=False)):
            if found := difference(old, new, f"{where}[{index}]"):
                return found
        if len(recorded) != len(now):
            return f"the length of {where}, recorded as {len(recorded)}, now {len(now)}"
        return ""
    if recorded == now:
        return ""
    return f"{where}, recorded as {_short(recorded, now)}, now {_short(now, recorded)}"


def _short(value: Any, other: Any = None) -> str:
    """A value in at most about 80 characters; of two long texts the part where they begin to differ."""
    if isinstance(value, str) and isinstance(other, str):
        same = next((i for i, (a, b) in enumerate(zip(value, other, strict=False)) if a != b), len(other))
        start = max(0, same - 30)
        value = ("…" if start else "") + value[start : start + 70] + ("…" if len(value) > start + 70 else "")
    shown = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return shown if len(shown) <= 80 else shown[:79] + "…"


def message_record(message: ChatMessage) -> dict[str, Any]:
    return message.model_dump(mode="json", exclude_defaults=True, fallback=lambda value: f"<{type(value).__name__}>")


def _completion_record(completion: BaseCompletion) -> dict[str, Any]:
    figures = {name: getattr(completion, name, None) for name in _FIGURES}
    return {"message": message_record(completion.message), **figures}


def _completion_of(record: Mapping[str, Any]) -> Completion:
    figures = {name: record.get(name) for name in _FIGURES}
    return Completion(ChatMessage.model_validate(record["message"]), **figures)


def _fields(delta: Delta) -> dict[str, Any]:
    if isinstance(delta, ToolCallFinished):
        return {"index": delta.index, "call": delta.call.model_dump(mode="json")}
    return asdict(delta)


def _delta_of(record: Mapping[str, Any]) -> Delta:
    fields = {name: value for name, value in record.items() if name != "delta"}
    if "call" in fields:
        fields["call"] = ToolCall.model_validate(fields["call"])
    delta: Delta = _DELTAS[record["delta"]](**fields)
    return delta


def message_key(message: ChatMessage) -> str:
    return request_key({"messages": [message_record(message)], "functions": [], "hyperparams": {}}, "message")


def request_key(request: dict[str, Any], kind: str = "prompt") -> str:
    text = json.dumps(with_plain_ids(request), sort_keys=True)
    return f"{kind} {sha256(text.encode()).hexdigest()[:32]}"
