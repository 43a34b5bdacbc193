"""Files and folders that are either there whole or not at all: written beside their place, and renamed at the end."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4

from .exceptions import EngineError

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def write_atomically(fp: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> None:
    """Writes or replaces a file: whoever reads it, and whatever fails, it is the old one or the new one. A link stays,
    its target is replaced; the mode is kept. Raises OSError if it can't be written."""
    path = Path(os.path.realpath(fp))
    mode = _mode_to_keep(path)
    temporary = _beside(path)
    # a new file gets what the umask leaves; the copy of a private one is private from the start
    fd = os.open(temporary, _FLAGS, 0o666 if mode is None else 0o600)
    try:
        with open(fd, "wb") as file:
            if mode is not None:
                os.chmod(temporary, mode)
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """An empty file beside `target`, which it becomes at the end if nothing goes wrong."""
    unfinished = _beside(target)
    os.close(os.open(unfinished, _FLAGS, 0o666))
    try:
        yield unfinished
        _sync([unfinished])
        os.replace(unfinished, target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, which it becomes at the end if nothing goes wrong. Raises EngineError if
    `target` is a file, or a folder that isn't empty."""
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise EngineError(f"{str(target)!r} is there and not empty: give a new folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _beside(target)
    unfinished.mkdir()
    try:
        yield unfinished
        _sync([*unfinished.iterdir(), unfinished])
        unfinished.replace(target)
        _sync([target.parent])
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _beside(path: Path) -> Path:
    return path.with_name(f".kani-{uuid4().hex}.tmp")


def _sync(paths: Sequence[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _mode_to_keep(path: Path) -> int | None:
    """The mode of the file that is replaced; None if there is none. Raises OSError if it can't be written."""
    try:
        old = path.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(f"{str(path)!r} is a folder: give the name of a file in it.")
    if not stat.S_ISREG(old.st_mode):
        raise OSError(f"{str(path)!r} is a device or a pipe: it can't be replaced by a file.")
    if not os.access(path, os.W_OK):
        raise PermissionError(f"{str(path)!r} is write-protected: give another name, or make it writable.")
    return stat.S_IMODE(old.st_mode)
