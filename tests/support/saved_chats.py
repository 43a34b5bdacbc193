"""Chats and files for the tests of saving."""

from __future__ import annotations

import base64
import zipfile
from pathlib import Path
from typing import Any, Literal

import pydantic
from scripted import ScriptedEngine

from kani_lite import ChatMessage, Kani, MessagePart, ReasoningPart, TextPart, ToolCall
from kani_lite.saving import get_ctx


class Picture(MessagePart):
    """Keeps its bytes beside the JSON where there is a place for them."""

    data: bytes
    suffix: str = ".png"

    @pydantic.model_serializer(mode="wrap")
    def _save(self, handler: Any, info: pydantic.SerializationInfo) -> dict[str, Any]:
        ctx = get_ctx(info)
        where = (
            {"path": ctx.save_bytes(self.data, self.suffix)} if ctx else {"b64": base64.b64encode(self.data).decode()}
        )
        return {**where, **self._get_typekey_dict()}

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _load(cls, value: Any, handler: Any, info: pydantic.ValidationInfo) -> Any:
        if isinstance(value, dict) and "path" in value:
            ctx = get_ctx(info)
            assert ctx is not None
            value = {"data": ctx.load_bytes(value["path"]), "suffix": value["path"][73:]}
        elif isinstance(value, dict) and "b64" in value:
            value = {"data": base64.b64decode(value["b64"])}
        return handler(value)


Format = Literal["json", "kani"]
FORMATS: tuple[Format, ...] = ("json", "kani")
PICTURE = b"\x89PNG\r\n"
CHAT = [
    ChatMessage.user(["Hi ☃", TextPart(content="there"), Picture(data=PICTURE)], name="Ada"),
    ChatMessage.assistant(
        [ReasoningPart(content="hm", extra={"k": [1, None]})], tool_calls=[ToolCall.from_function("f")]
    ),
    ChatMessage.function("f", None, "1", is_tool_call_error=False),
]


def chat(*messages: ChatMessage, system: str | None = "Be kind.") -> Kani:
    return Kani(ScriptedEngine(), system_prompt=system, chat_history=list(messages))


def zipped(path: Path, entries: dict[str, bytes | str], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as zf:
        for name, data in entries.items():
            zf.writestr(name, data)
    return path
