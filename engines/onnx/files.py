"""What the folder of a model in ONNX format says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kani_lite.engines.sampling import SamplingParams, params_of_model
from kani_lite.exceptions import EngineError, PromptError
from kani_lite.prompts.jinja import JinjaChatTemplate

from .package import onnx_package

CONFIG = "genai_config.json"
_KV_BYTES = 4  # on a CPU keys and values are in float32


class TextTokenizer:
    """A tokenizer.json. Adds no special tokens, and knows those that stand in a text."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise EngineError(
                f"The folder {str(folder)!r} has no tokenizer.json: copy it from the model it is made of."
            )
        try:
            self._tokenizer = onnx_package("tokenizers").Tokenizer.from_file(str(path))
        except EngineError:
            raise
        except Exception as error:  # the package has no exception class of its own
            raise EngineError(f"{str(path)!r} can't be read ({error}): copy it again.") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str) -> list[int]:
        """Raises PromptError for a text that has no UTF-8, such as half a surrogate pair."""
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeError) as error:
            raise PromptError(f"This text can't be written in UTF-8, so it has no tokens: {text!r:.80}") from error
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens included."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def id_of(self, token: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(token)
        return found


@dataclass(frozen=True)
class ModelConfig:
    """What genai_config.json says. `token_bytes`: of the keys and values of one token; `ends`: ids that end a reply;
    `session`: options for onnxruntime.

    `continues`: whether several tokens can follow what the model has read. Where keys and values don't stay in one
    place (fp16 on a CPU) the library takes them one at a time only.
    """

    context_length: int
    vocabulary_size: int
    token_bytes: int
    ends: frozenset[int]
    continues: bool
    session: dict[str, Any]
    recommended: SamplingParams


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder, read. `ends` are all ids that end a reply."""

    path: Path
    config: ModelConfig
    tokenizer: TextTokenizer
    template: JinjaChatTemplate
    ends: list[int]


def read_folder(folder: str | PathLike[str]) -> ModelFolder:
    """Raises EngineError if it isn't the folder of a model in ONNX format."""
    path = Path(folder).expanduser()
    if not (path / CONFIG).is_file():
        what = f"The folder {str(path)!r} has no {CONFIG}" if path.is_dir() else f"There is no folder {str(path)!r}"
        raise EngineError(f"{what}: make one of any model with `kani-lite convert onnx MODEL FOLDER --int4`.")
    config = _read_config(path / CONFIG)
    tokenizer = TextTokenizer(path)
    settings = read_json(path / "tokenizer_config.json") if (path / "tokenizer_config.json").is_file() else {}
    special = _special_tokens(settings)
    end = tokenizer.id_of(special.get("eos_token", ""))
    template = JinjaChatTemplate(_template(path, settings), **special)
    template.name_or_path = str(path)  # for the message that there is none
    return ModelFolder(path, config, tokenizer, template, sorted(config.ends | ({end} if end is not None else set())))


def _read_config(path: Path) -> ModelConfig:
    content = read_json(path)
    try:
        model, search = content["model"], content.get("search") or {}
        given = model.get("eos_token_id")
        return ModelConfig(
            _context_length(model),
            int(model["vocab_size"]),
            _token_bytes(model["decoder"]),
            frozenset([given] if isinstance(given, int) else given or ()),
            bool(search.get("past_present_share_buffer", False)),
            dict(model["decoder"].get("session_options") or {}),
            params_of_model(SimpleNamespace(**search)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"{str(path)!r} doesn't describe a text model ({error!r}): convert it again.") from error


def read_json(path: Path) -> dict[str, Any]:
    """Raises EngineError if the file holds no JSON object."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"{str(path)!r} can't be read ({error}): convert the model again.") from error
    if not isinstance(value, dict):
        raise EngineError(f"{str(path)!r} holds no JSON object: convert the model again.")
    return value


def _context_length(model: Mapping[str, Any]) -> int:
    """Not beyond a sliding window: past that the library (0.18) fails, or says something else than transformers."""
    window = int((model["decoder"].get("sliding_window") or {}).get("window_size", 0))
    length = int(model["context_length"])
    return min(length, window) if window > 0 else length


def _token_bytes(decoder: Mapping[str, Any]) -> int:
    heads = int(decoder["num_key_value_heads"]) * int(decoder["head_size"])
    return 2 * int(decoder["num_hidden_layers"]) * heads * _KV_BYTES


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Those that a template may name, such as bos_token; a token is a text, or an object with its text."""
    found = {}
    for name, value in settings.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def _template(folder: Path, settings: Mapping[str, Any]) -> str:
    """Of several that a tokenizer has, the one for functions. Empty if there is none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    given = settings.get("chat_template") or ""
    if isinstance(given, list):
        named = {each["name"]: each["template"] for each in given}
        given = named.get("tool_use") or named.get("default", "")
    return str(given)
