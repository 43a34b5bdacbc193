"""llama.cpp through its C functions: a model, its vocabulary, and a context with keys and values.

The bindings' own `Llama` runs one sequence at a time; the functions below it run many in one forward pass.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kani_lite.exceptions import EngineError

from .package import llamacpp_package

NO_ROOM = 1  # llama_decode found no cells for the batch, and changed nothing
_KEPT_LINES = 40
_WARNING, _ERROR, _CONTINUED = 3, 4, 5  # of ggml


class Log:
    """What llama.cpp says. Its log is one for the whole process: quiet, unless an engine was built as verbose."""

    def __init__(self, package: Any) -> None:
        self.verbose = False
        self._problems: deque[str] = deque(maxlen=_KEPT_LINES)
        self._level = 0
        self._callback = package.llama_log_callback(self._take)  # the library has a bare pointer to it
        package.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _take(self, level: int, text: bytes, _: Any) -> None:
        said = text.decode("utf-8", "replace")
        self._level = self._level if level == _CONTINUED else level
        if self._level in (_WARNING, _ERROR) and said.strip():
            self._problems.append(said.strip())
        if self.verbose:
            print(said, end="", file=sys.stderr, flush=True)

    def last_problems(self) -> str:
        """The last things that went wrong, on one line; then they are forgotten."""
        found = list(self._problems)[-3:]
        self._problems.clear()
        return " | ".join(found) or "it gave no reason"


@cache
def library() -> tuple[Any, Log]:
    """(the package llama_cpp, its log). Raises MissingModelDependencies if it isn't installed."""
    package = llamacpp_package("llama_cpp")
    log = Log(package)
    package.llama_backend_init()
    return package, log


class Model:
    """A loaded GGUF file. It is freed with this object."""

    def __init__(self, path: str, params: Any) -> None:
        """Raises EngineError if llama.cpp can't load it."""
        self.lib, log = library()
        log.last_problems()
        pointer = self.lib.llama_model_load_from_file(path.encode(), params)
        if not pointer:
            raise EngineError(f"llama.cpp can't load {path!r}: {log.last_problems()}.")
        self.pointer = pointer
        weakref.finalize(self, self.lib.llama_model_free, pointer).atexit = False
        self.vocab = self.lib.llama_model_get_vocab(pointer)
        self.vocabulary_size = int(self.lib.llama_vocab_n_tokens(self.vocab))
        self.metadata = self._metadata()
        if self.lib.llama_model_has_encoder(pointer) or self.lib.llama_model_is_diffusion(pointer):
            kind = self.metadata.get("general.architecture")
            raise EngineError(f"{path!r} is a {kind!r} model, which doesn't write a reply word by word: give another.")

    def _metadata(self) -> dict[str, str]:
        """The file's keys whose values are no lists."""
        lib, found = self.lib, {}
        for place in range(lib.llama_model_meta_count(self.pointer)):
            pair = []
            for ask in (lib.llama_model_meta_key_by_index, lib.llama_model_meta_val_str_by_index):
                size = ask(self.pointer, place, ctypes.create_string_buffer(1), 1) + 1
                buffer = ctypes.create_string_buffer(size)
                ask(self.pointer, place, buffer, size)
                pair.append(buffer.value.decode("utf-8", "replace"))
            found[pair[0]] = pair[1]
        return found

    def special(self, name: str) -> int | None:
        """The id of "bos", "eos", "pad" and the like; None if it has no such token."""
        token = int(getattr(self.lib, f"llama_vocab_{name}")(self.vocab))
        return token if token >= 0 else None

    def text_of(self, token: int) -> str:
        """A token as the vocabulary writes it."""
        text: bytes = self.lib.llama_vocab_get_text(self.vocab, token)
        return text.decode("utf-8", "replace")

    def end_tokens(self) -> list[int]:
        """Those that end a reply, as llama.cpp knows them."""
        is_end = self.lib.llama_vocab_is_eog
        return [token for token in range(self.vocabulary_size) if is_end(self.vocab, token)]

    def tokenize(self, text: bytes) -> list[int]:
        """Special tokens in it are recognised, none are added."""
        room = len(text) + 16
        buffer = (ctypes.c_int32 * room)()
        count = self.lib.llama_tokenize(self.vocab, text, len(text), buffer, room, False, True)
        if count < 0:  # so many would it have been
            buffer = (ctypes.c_int32 * -count)()
            count = self.lib.llama_tokenize(self.vocab, text, len(text), buffer, -count, False, True)
        return list(buffer[:count])

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """Special tokens included."""
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        room = 16 * len(tokens) + 64
        buffer = ctypes.create_string_buffer(room)
        size = self.lib.llama_detokenize(self.vocab, ids, len(tokens), buffer, room, False, True)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = self.lib.llama_detokenize(self.vocab, ids, len(tokens), buffer, -size, False, True)
        return buffer.raw[:size]

    def piece(self, token: int) -> bytes:
        """A token's own bytes."""
        buffer = ctypes.create_string_buffer(64)
        size = self.lib.llama_token_to_piece(self.vocab, token, buffer, 64, 0, True)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = self.lib.llama_token_to_piece(self.vocab, token, buffer, -size, 0, True)
        return buffer.raw[:size]


class _Batch:
    """The arrays of one forward pass, of up to `size` tokens."""

    def __init__(self, lib: Any, size: int) -> None:
        self.token, self.position = np.zeros(size, np.int32), np.zeros(size, np.int32)
        self.sequence, self.wanted = np.zeros(size, np.int32), np.zeros(size, np.int8)
        self._one = np.ones(size, np.int32)  # sequences that each token belongs to
        integer = ctypes.POINTER(ctypes.c_int32)
        start = self.sequence.ctypes.data
        self._each = (integer * size)(*(ctypes.cast(start + 4 * place, integer) for place in range(size)))
        self.struct = lib.llama_batch(
            n_tokens=0,
            token=self.token.ctypes.data_as(integer),
            embd=None,
            pos=self.position.ctypes.data_as(integer),
            n_seq_id=self._one.ctypes.data_as(integer),
            seq_id=ctypes.cast(self._each, ctypes.POINTER(integer)),
            logits=self.wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )


class Context:
    """Keys and values of a model's sequences, in cells that all share. It is freed with this object."""

    def __init__(self, model: Model, params: Any, adapters: Mapping[str, float] | None = None) -> None:
        """`adapters`: the scale of each file of a LoRA adapter. Raises EngineError if llama.cpp can't make it."""
        self._lib, self._log = library()
        self._log.last_problems()
        pointer = self._lib.llama_init_from_model(model.pointer, params)
        if not pointer:
            raise EngineError(
                f"llama.cpp can't make room for {params.n_ctx} tokens ({self._log.last_problems()}): give less "
                "kv_cache_memory_gb or max_context_size."
            )
        self._pointer = pointer
        # the model must outlive it, so that is an argument too
        weakref.finalize(self, _free, self._lib, pointer, model).atexit = False
        self._memory = self._lib.llama_get_memory(pointer)
        self._vocabulary = model.vocabulary_size
        self.batch_size = int(self._lib.llama_n_batch(pointer))  # at most the cells; more would end the process
        self._batch = _Batch(self._lib, self.batch_size)
        if adapters:
            self._set_adapters(model, adapters)

    def _set_adapters(self, model: Model, adapters: Mapping[str, float]) -> None:
        loaded = [self._lib.llama_adapter_lora_init(model.pointer, path.encode()) for path in adapters]
        if not all(loaded):
            raise EngineError(f"llama.cpp can't load the LoRA adapter: {self._log.last_problems()}.")
        pointers = (self._lib.llama_adapter_lora_p_ctypes * len(loaded))(*loaded)
        scales = (ctypes.c_float * len(loaded))(*adapters.values())
        if self._lib.llama_set_adapters_lora(self._pointer, pointers, len(loaded), scales):
            raise EngineError(f"llama.cpp can't use the LoRA adapter: {self._log.last_problems()}.")

    def decode(self, parts: Sequence[tuple[int, int, Sequence[int], bool]]) -> int:
        """One forward pass. Of each sequence: (its number, the place of its first new token, the new tokens, whether
        the logits after all of them are wanted, and not only those after the last). Returns 0, or NO_ROOM; raises
        EngineError for any other failure, after which these sequences' cells are unknown."""
        batch, at = self._batch, 0
        for sequence, place, tokens, all_wanted in parts:
            part = slice(at, at + len(tokens))
            batch.token[part] = tokens
            batch.position[part] = np.arange(place, place + len(tokens))
            batch.sequence[part] = sequence
            batch.wanted[part] = all_wanted
            at += len(tokens)
            batch.wanted[at - 1] = 1
        batch.struct.n_tokens = at
        status = int(self._lib.llama_decode(self._pointer, batch.struct))
        if status not in (0, NO_ROOM):
            raise EngineError(f"llama.cpp failed with status {status}: {self._log.last_problems()}.")
        return status

    def logits(self, place: int) -> NDArray[np.float32]:
        """(vocabulary,): those after the token at this place of the last `decode`, whose logits were wanted. A view,
        until the next `decode`."""
        pointer = self._lib.llama_get_logits_ith(self._pointer, place)
        return np.ctypeslib.as_array(pointer, (self._vocabulary,))

    def forget(self, sequence: int, start: int) -> bool:
        """Frees a sequence's cells from this place on. False if this kind of model can't free a part."""
        return bool(self._lib.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def share(self, source: int, target: int, length: int) -> None:
        """Makes the first cells of one sequence those of another, too, which is empty."""
        self._lib.llama_memory_seq_cp(self._memory, source, target, 0, length)


def _free(lib: Any, pointer: Any, model: Model) -> None:
    lib.llama_free(pointer)
    del model
