"""A GGUF file's tokenizer: llama.cpp's own, or the tokenizer.json that the file carries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from kani_lite.engines.worker import CLOSED
from kani_lite.exceptions import EngineError

from .library import Model
from .package import llamacpp_package

HF_JSON = "tokenizer.huggingface.json"


class GGUFTokenizer(Protocol):
    """Texts to ids and back; special tokens in a text are recognised, none are added, and none are left out."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def close(self) -> None: ...


def tokenizer_of(model: Model) -> GGUFTokenizer:
    """The file's tokenizer. Raises EngineError if its tokenizer.json can't be read."""
    written = model.metadata.get(HF_JSON)
    return JsonTokenizer(written) if written else VocabTokenizer(model)


def as_utf8(text: str) -> str:
    """Half a surrogate pair, which no tokenizer takes, becomes U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class VocabTokenizer:
    """llama.cpp's own, on the model's vocabulary. Any thread may use it."""

    def __init__(self, model: Model) -> None:
        self._model: Model | None = model

    def _open(self) -> Model:
        # a name of its own keeps the model while it is used, if the engine is closed meanwhile
        if (model := self._model) is None:
            raise EngineError(CLOSED)
        return model

    def encode(self, text: str) -> list[int]:
        return self._open().tokenize(as_utf8(text).encode()) if text else []

    def decode(self, ids: Sequence[int]) -> str:
        return self._open().detokenize(ids).decode("utf-8", "replace") if ids else ""

    def close(self) -> None:
        """Lets go of the model."""
        self._model = None


class JsonTokenizer:
    """A tokenizer.json of transformers: for models whose text llama.cpp would split in another way."""

    def __init__(self, written: str) -> None:
        package: Any = llamacpp_package("tokenizers")
        try:
            self._tokenizer = package.Tokenizer.from_str(written)
        except Exception as error:  # the package has no exception class of its own
            raise EngineError(f"The file's {HF_JSON} can't be read ({error}): convert the model again.") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(as_utf8(text), add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def close(self) -> None:
        """It holds nothing of the model."""
