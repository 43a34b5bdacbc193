"""Which GGUF file is meant, and what it says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from kani_lite.engines.sampling import SamplingParams
from kani_lite.exceptions import EngineError
from kani_lite.prompts.jinja import JinjaChatTemplate

from .convert_tokenizer import ENDS_KEY
from .hub import fetch_gguf, first_part, parts_missing
from .library import Model

_MAGIC = b"GGUF"
_SAMPLING = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}


def find_file(
    repo_id: str | None, filename: str | None, model_path: str | PathLike[str] | None, token: str | bool | None
) -> Path:
    """The file, or the first of its parts. Raises EngineError unless exactly one of `model_path` and `repo_id` is
    given, and if the file isn't there or is none in the format GGUF."""
    if (model_path is None) == (repo_id is None):
        raise EngineError(
            f"model_path={model_path!r} and repo_id={repo_id!r}: give exactly one of them, a file or a name on the hub."
        )
    if repo_id is not None:
        return _checked(fetch_gguf(repo_id, filename, token))
    assert model_path is not None
    if filename is not None:
        raise EngineError(f"filename={filename!r} is that of a file on the hub: leave it out beside model_path.")
    path = Path(model_path).expanduser()
    if path.is_dir():
        raise EngineError(f"{str(path)!r} is a folder: give a .gguf file (`kani-lite convert gguf` makes one of it).")
    if not path.is_file():
        raise EngineError(f"There is no file {str(path)!r}: give a .gguf file, or repo_id= for one of the hub.")
    path = path.with_name(first_part(path.name))
    if missing := parts_missing(path.name, [each.name for each in path.parent.iterdir()]):
        raise EngineError(f"The file {str(path)!r} is in several parts, and {missing[0]!r} isn't there: fetch it.")
    return _checked(path)


def _checked(path: Path) -> Path:
    with path.open("rb") as file:
        if (found := file.read(4)) != _MAGIC:
            raise EngineError(f"{str(path)!r} is no GGUF file, it begins with {found!r}: give one that is.")
    return path


def template_of(model: Model, path: Path) -> JinjaChatTemplate:
    """The file's chat template; of several the one for functions. Its text is empty if there is none."""
    found = model.metadata
    source = found.get("tokenizer.chat_template.tool_use") or found.get("tokenizer.chat_template", "")
    special = {}
    for name in ("bos", "eos", "pad"):
        if (token := model.special(name)) is not None:
            special[f"{name}_token"] = model.text_of(token)
    template = JinjaChatTemplate(source, **special)
    template.name_or_path = str(path)  # for the message that there is none
    return template


def ends_of(model: Model) -> list[int]:
    """The ids that end a reply: those that the file names, or what llama.cpp makes of its tokens."""
    written = model.metadata.get(ENDS_KEY)
    return [int(token) for token in json.loads(written)] if written else model.end_tokens()


def recommended(metadata: Mapping[str, str]) -> SamplingParams:
    """What the model's authors recommend: greedy unless the file says more."""
    values: dict[str, Any] = {}
    for key, name in _SAMPLING.items():
        if (written := metadata.get(f"general.sampling.{key}")) is not None:
            values[name] = int(written) if name == "top_k" else float(written)
    if len(values.keys() - {"temperature"}) and "temperature" not in values:
        values["temperature"] = 1.0
    if (penalty := metadata.get("general.sampling.penalty_repeat")) is not None:
        values["repetition_penalty"] = float(penalty)
    return SamplingParams(**({"temperature": 0.0} | values))
