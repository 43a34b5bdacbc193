"""Models and GGUF files of the Hugging Face hub: those that are on this disk first, the network only if it must be."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from kani_lite.exceptions import EngineError, MissingModelDependencies

from .package import llamacpp_package

_MODEL_FILES = ["*.json", "*.jinja", "*.safetensors"]
_SECONDS = 15.0  # for the hub to say what a model has
T = TypeVar("T")


def fetch_model(name: str, token: str | bool | None) -> Path:
    """The folder of a model's files. Raises EngineError if there is no such model, or it can't be fetched."""
    hub = _hub(name)
    found = _on_disk(hub, name, _MODEL_FILES)
    if found is not None and (found / "config.json").is_file() and any(found.glob("*.safetensors")):
        return found
    _check_online(hub, name)
    return Path(_asked(name, lambda: hub.snapshot_download(name, allow_patterns=_MODEL_FILES, token=token)))


def fetch_gguf(repo_id: str, filename: str | None, token: str | bool | None) -> Path:
    """The GGUF file of a model on the hub whose name is `filename`, or fits this pattern; of one in several parts the
    first, when all are there. Raises EngineError if there is none, or more than one."""
    hub = _hub(repo_id)
    pattern = filename or "*.gguf"
    folder = _on_disk(hub, repo_id, [pattern])
    here = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.gguf")) if folder is not None else []
    matching = [name for name in here if _fits(name, pattern)]
    if folder is not None and len(first := whole_files(matching)) == 1 and not parts_missing(first[0], matching):
        return folder / first[0]
    _check_online(hub, repo_id)
    api = hub.HfApi(token=token)
    listed = _asked(repo_id, lambda: api.model_info(repo_id, timeout=_SECONDS)).siblings or []
    there = sorted(each.rfilename for each in listed if each.rfilename.lower().endswith(".gguf"))
    matching = [name for name in there if _fits(name, pattern)]
    chosen = one_of(repo_id, whole_files(matching), there, filename)
    paths = [
        Path(_asked(repo_id, partial(hub.hf_hub_download, repo_id, name, token=token)))
        for name in matching
        if name == chosen or first_part(name) == chosen
    ]
    return paths[0]


def one_of(repo_id: str, names: Sequence[str], there: Sequence[str], filename: str | None) -> str:
    """The one name that fits. Raises EngineError otherwise, with those that there are."""
    if len(names) == 1:
        return names[0]
    listed = ", ".join((names or whole_files(there))[:12]) or "no GGUF file at all"
    what = f"{len(names)} files that fit" if names else "no file that fits"
    raise EngineError(f"The model {repo_id!r} has {what} filename={filename!r}: it has {listed}; give one of them.")


def first_part(name: str) -> str:
    """The name of a file's first part: its own, unless it ends like -00002-of-00005.gguf."""
    stem, dot, ending = name.rpartition(".")
    head, between, count = stem.rpartition("-of-")
    number = head[-5:]
    if ending.lower() == "gguf" and between and count.isdecimal() and len(count) == 5 and number.isdecimal():
        return f"{head[:-5]}00001-of-{count}{dot}{ending}"
    return name


def whole_files(names: Sequence[str]) -> list[str]:
    """These names with one for each file that is in several parts: the first."""
    return sorted({first_part(name) for name in names})


def parts_missing(name: str, names: Sequence[str]) -> list[str]:
    """Those parts of a file that aren't among these names."""
    stem, dot, ending = name.rpartition(".")
    head, between, count = stem.rpartition("-of-")
    if not between or first_part(name) != name or not count.isdecimal():
        return [] if name in names else [name]
    wanted = [f"{head[:-5]}{i:05}-of-{count}{dot}{ending}" for i in range(1, int(count) + 1)]
    return [part for part in wanted if part not in names]


def _fits(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) or fnmatch(name.split("/")[-1], pattern)


def _hub(name: str) -> Any:
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1 or not name:
        raise EngineError(f"There is no folder or file {name!r}, and it is no name that the hub could have.")
    return llamacpp_package("huggingface_hub")


def _on_disk(hub: Any, name: str, patterns: Sequence[str]) -> Path | None:
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(patterns), local_files_only=True))
    except (OSError, ValueError):  # LocalEntryNotFoundError is both; a name that the hub can't have is a ValueError
        return None


def _check_online(hub: Any, name: str) -> None:
    if hub.constants.HF_HUB_OFFLINE:
        raise EngineError(
            f"The model {name!r} isn't on this disk and HF_HUB_OFFLINE switches the hub off: fetch it first."
        )


def _asked(name: str, ask: Callable[[], T]) -> T:
    """What the hub answers. Raises EngineError where it can't be reached or has no such thing."""
    try:
        return ask()
    except MissingModelDependencies:
        raise
    except Exception as error:  # its client's errors have no class in common
        raise EngineError(
            f"The model {name!r} can't be fetched from the hub ({type(error).__name__}: {error}): check "
            "its name and the connection, or pass token= if it is private."
        ) from error
