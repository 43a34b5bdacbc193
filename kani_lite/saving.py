"""Chats in files: `.json`, or `.kani`, a ZIP of the same JSON and of the bytes that its parts hold.

Files are exchanged with kani in both directions. A part that holds bytes (an image, say) keeps them out of the JSON by
a serializer of its own, which asks `get_ctx` for the file that is being written.
"""

from __future__ import annotations

import inspect
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import pydantic
from pydantic_core import PydanticSerializationError

from .exceptions import KaniException
from .messages import BaseModel, ChatMessage
from .new_files import write_atomically

if TYPE_CHECKING:
    import zipfile

PathLike: TypeAlias = str | os.PathLike[str]
SaveFormat = Literal["json", "kani"]

SAVELOAD_CONTEXT_KEY = "kani.saveload.context"
"""Where pydantic's context holds the KaniZipSaveContext while a `.kani` file is written or read."""

_VERSION = 1
_INDEX = "index.json"
_BLOB = re.compile(r"blobs/([0-9a-f]{2})/(\1[0-9a-f]{62})([^/\\\x00-\x1f\x7f]*)")
_MADE = (1980, 1, 1, 0, 0, 0)  # the same chat makes the same file, and a clock before 1980 makes one too


class SavedKani(BaseModel):
    """What is saved of a chat."""

    version: int = _VERSION
    always_included_messages: list[ChatMessage]
    chat_history: list[ChatMessage]

    @pydantic.field_validator("version")
    @classmethod
    def _check_version(cls, version: int) -> int:
        # the first field: a later version is named before its messages, which may look otherwise, are read
        if version > _VERSION:
            raise KaniException(
                f"It was saved in version {version} of the format, and this kani_lite reads version {_VERSION}: "
                "upgrade kani_lite, then load it again."
            )
        if version < _VERSION:
            raise ValueError(f"there is no version {version} of the format")
        return version


class HasMessages(Protocol):
    """What can be saved: a Kani, or a SavedKani."""

    always_included_messages: list[ChatMessage]
    chat_history: list[ChatMessage]


def save(fp: PathLike, inst: HasMessages, *, save_format: SaveFormat | None = None, **kwargs: Any) -> None:
    """Writes a chat to a file: all of it, or the file stays as it was.

    :param fp: a file that exists is replaced and keeps its mode; a link stays, its target is replaced
    :param inst: the chat
    :param save_format: by default "json" if the name ends in .json, otherwise "kani"
    :param kwargs: for pydantic's `model_dump_json`
    :raises KaniException: a message can't be written as JSON
    """
    if save_format is None:
        save_format = "json" if Path(fp).suffix == ".json" else "kani"
    if save_format not in ("json", "kani"):
        raise ValueError(f"save_format is {save_format!r}: give 'json' or 'kani'.")
    data = SavedKani(always_included_messages=list(inst.always_included_messages), chat_history=list(inst.chat_history))
    kwargs.setdefault("fallback", repr)
    write = _write_json if save_format == "json" else _write_zip
    try:
        write_atomically(fp, lambda file: write(file, data, kwargs))
    except PydanticSerializationError as e:
        raise KaniException(f"{os.fspath(fp)!r} was not saved, since a message can't be written as JSON: {e}") from e


def load(fp: PathLike, *, max_bytes: int = 2**30, **kwargs: Any) -> SavedKani:
    """Reads a chat that `save`, or kani, wrote. What is in the file decides how it is read, not its name.

    Nothing in a file is run or imported, and nothing is unpacked to disk.

    :param fp: the file
    :param max_bytes: of the file's JSON and blobs together, uncompressed
    :param kwargs: for pydantic's `model_validate_json`
    :raises KaniException: it isn't a saved chat, is damaged, is larger than `max_bytes`, or is of a later version
    :raises MissingMessagePartType: the class of a part isn't defined: import its module first
    """
    inspect.signature(SavedKani.model_validate_json).bind(b"", **kwargs)  # a TypeError is the caller's, not the file's
    with open(fp, "rb") as file:
        try:
            if file.read(2) == b"PK":
                return _read_zip(file, max_bytes, kwargs)
            _check_size(os.fstat(file.fileno()).st_size, max_bytes)
            file.seek(0)
            return SavedKani.model_validate_json(file.read(), **kwargs)
        except KaniException as e:
            if type(e) is KaniException:
                raise KaniException(f"{os.fspath(fp)!r} can't be loaded. {e}") from e
            raise
        except Exception as e:
            raise KaniException(f"{os.fspath(fp)!r} is not a saved chat, or is damaged: {_reason(e)}") from e


# --- .kani ----------------------------------------------------------------------------------------------------------


@dataclass
class KaniZipSaveContext:
    """The `.kani` file that is being written or read. Parts keep their bytes in it, under the hash of what they are."""

    zf: zipfile.ZipFile
    _blobs: dict[str, bytes] = field(default_factory=dict, repr=False)  # read once, shared by the parts
    _saved: set[str] = field(default_factory=set, repr=False)

    def save_bytes(self, data: bytes, suffix: str = "") -> str:
        """Puts bytes in the file, once however often they are saved, and returns their path in it.

        :param data: what to keep
        :param suffix: the end of the path, such as ".png"
        """
        from hashlib import sha256

        digest = sha256(data).hexdigest()
        path = f"blobs/{digest[:2]}/{digest}{suffix}"
        if not _BLOB.fullmatch(path):
            raise ValueError(f"suffix is {suffix!r}: give the end of a file name, such as '.png'.")
        if path not in self._saved:
            _put(self.zf, path, data)
            self._saved.add(path)
        return path

    def load_bytes(self, fp: str) -> bytes:
        """The bytes that `save_bytes` returned this path for. Raises KaniException if they are missing or damaged."""
        from hashlib import sha256

        if fp in self._blobs:
            return self._blobs[fp]
        match = _BLOB.fullmatch(fp)
        if match is None:
            raise KaniException(f"It names {fp!r} as its data, which is not the path of a blob.")
        try:
            data = self.zf.read(fp)
        except Exception as e:  # zipfile raises whatever a damaged archive leads it to
            raise KaniException(f"The data of one of its parts, {fp!r}, is missing or damaged: {_reason(e)}") from e
        if sha256(data).hexdigest() != match[2]:
            raise KaniException(f"The data of one of its parts, {fp!r}, is damaged: it has another hash.")
        self._blobs[fp] = data
        return data


def get_ctx(info: pydantic.SerializationInfo | pydantic.ValidationInfo) -> KaniZipSaveContext | None:
    """The `.kani` file that is being written or read; None where there is none, as in a `.json` file."""
    ctx = info.context.get(SAVELOAD_CONTEXT_KEY) if info.context else None
    return ctx if isinstance(ctx, KaniZipSaveContext) else None


def _put(zf: zipfile.ZipFile, path: str, data: bytes) -> None:
    import zipfile

    zf.writestr(zipfile.ZipInfo(path, _MADE), data, compress_type=zipfile.ZIP_DEFLATED, compresslevel=6)


def _with_zip(zf: zipfile.ZipFile, kwargs: dict[str, Any]) -> dict[str, Any]:
    return kwargs | {"context": {**(kwargs.get("context") or {}), SAVELOAD_CONTEXT_KEY: KaniZipSaveContext(zf)}}


def _write_json(file: IO[bytes], data: SavedKani, kwargs: dict[str, Any]) -> None:
    file.write(data.model_dump_json(**kwargs).encode())


def _write_zip(file: IO[bytes], data: SavedKani, kwargs: dict[str, Any]) -> None:
    import zipfile

    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as zf:
        _put(zf, _INDEX, data.model_dump_json(**_with_zip(zf, kwargs)).encode())


def _read_zip(file: IO[bytes], max_bytes: int, kwargs: dict[str, Any]) -> SavedKani:
    import zipfile

    with zipfile.ZipFile(file) as zf:
        # zipfile gives no more of an entry than the size it is listed with
        _check_size(sum(info.file_size for info in zf.infolist()), max_bytes)
        for info in zf.infolist():
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise KaniException(f"{info.filename!r} in it is compressed in a way that a saved chat never is.")
        return SavedKani.model_validate_json(zf.read(_INDEX), **_with_zip(zf, kwargs))


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise KaniException(
            f"It holds {size:,} bytes, and the limit is {max_bytes:,}: if you trust it, pass a larger max_bytes."
        )


def _reason(error: Exception) -> str:
    """An error in a line. Pydantic's own text quotes the chat: only place and kind of its first error are told."""
    if isinstance(error, pydantic.ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    return f"{type(error).__name__}: {error}"
