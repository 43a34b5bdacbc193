"""Tool calls that are valid by construction: once a call has begun, each token must go on with it.

Text is free until the marker of the model's format; from there on llama.cpp's grammar holds, until the call is
complete. llama.cpp's own lazy grammar would match a pattern against all of the reply at every token.
"""

from __future__ import annotations

import ctypes
import json
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kani_lite.engines.call_styles import CallStyle, MustCall
from kani_lite.exceptions import EngineError
from kani_lite.functions import AIFunction

from .gbnf import call_grammar, trigger_of
from .library import Model

_KEPT = 8  # grammars
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data
Logits = NDArray[np.float32]


class Vocabulary:
    """The bytes of each token."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @cached_property
    def pieces(self) -> list[bytes]:
        return [self.model.piece(token) for token in range(self.model.vocabulary_size)]

    @cached_property
    def ids(self) -> dict[bytes, int]:
        return {piece: token for token, piece in enumerate(self.pieces)}

    @cached_property
    def _sorted(self) -> list[tuple[bytes, int]]:
        return sorted((piece, token) for token, piece in enumerate(self.pieces))

    @cached_property
    def end(self) -> int | None:
        """A token that ends a reply."""
        ends = self.model.end_tokens()
        return ends[0] if ends else None

    def beginning_with(self, text: bytes) -> Iterator[tuple[bytes, int]]:
        """Tokens that begin with this text and are longer."""
        for piece, token in self._sorted[bisect_left(self._sorted, (text, -1)) :]:
            if not piece.startswith(text):
                return
            if len(piece) > len(text):
                yield piece, token

    def holding(self, text: bytes) -> list[tuple[bytes, int]]:
        """Tokens that hold this text and something after it."""
        return [(piece, token) for token, piece in enumerate(self.pieces) if text in piece[:-1]]


class GrammarState:
    """How far a text is in a grammar: one of llama.cpp's samplers, which is freed with this object."""

    def __init__(self, vocabulary: Vocabulary, pointer: Any) -> None:
        self._vocabulary, self._lib, self._pointer = vocabulary, vocabulary.model.lib, pointer

    def __del__(self) -> None:
        self._lib.llama_sampler_free(self._pointer)

    def copy(self) -> GrammarState:
        return GrammarState(self._vocabulary, self._lib.llama_sampler_clone(self._pointer))

    def accepted(self, tokens: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which of these tokens may come next."""
        candidates = np.zeros(len(tokens), _CANDIDATE)
        candidates["id"] = tokens
        array = self._lib.llama_token_data_array(
            data=candidates.ctypes.data_as(ctypes.POINTER(self._lib.llama_token_data)),
            size=len(tokens),
            selected=-1,
            sorted=False,
        )
        self._lib.llama_sampler_apply(self._pointer, ctypes.byref(array))
        found: NDArray[np.bool_] = candidates["logit"] > -np.inf
        return found

    def accepts(self, token: int) -> bool:
        return bool(self.accepted(np.array([token], np.int32))[0])

    @property
    def complete(self) -> bool:
        """Whether the text could end here: then the end token may come."""
        return self._vocabulary.end is not None and self.accepts(self._vocabulary.end)

    def advance(self, token: int) -> bool:
        """Goes on by this token; False, and no change, if it may not come. llama.cpp itself would end the process."""
        if not self.accepts(token):
            return False
        self._lib.llama_sampler_accept(self._pointer, token)
        return True

    def advance_text(self, text: bytes) -> bool:
        """The same by a text, byte by byte; False if it may not come, or has no such tokens."""
        ids = [self._vocabulary.ids.get(bytes([byte])) for byte in text]
        return all(token is not None and self.advance(token) for token in ids)


class CallGrammars:
    """The grammars of one model's calls, for the functions that requests offer."""

    def __init__(self, model: Model, style: CallStyle) -> None:
        """Raises EngineError if the model has no token that ends a reply."""
        trigger = trigger_of(style)
        assert trigger is not None
        self._style, self._trigger = style, trigger.encode()
        self._vocabulary = Vocabulary(model)
        if self._vocabulary.end is None:  # by which llama.cpp tells that a call is complete
            raise EngineError("strict_tools=True isn't possible, no token of this file ends a reply: leave it out.")
        self._known: OrderedDict[str, CallGrammar] = OrderedDict()

    def guide(self, functions: Sequence[AIFunction], ends: frozenset[int]) -> CallGuide:
        """For one reply. Raises EngineError for a function whose schema can't be written as a grammar."""
        must = functions if isinstance(functions, MustCall) else None
        allowed = functions if must is None else must.allowed
        key = json.dumps([must is None, *([each.name, each.json_schema] for each in allowed)], default=str)
        if key not in self._known:
            text = call_grammar(self._style, functions)
            self._known[key] = CallGrammar(self._vocabulary, self._trigger if must is None else b"", text)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return CallGuide(self._known[key], ends)


class CallGrammar:
    """What follows a trigger, ready to be begun; or with an empty one all of a reply."""

    def __init__(self, vocabulary: Vocabulary, trigger: bytes, text: str) -> None:
        lib = vocabulary.model.lib
        pointer = lib.llama_sampler_init_grammar(vocabulary.model.vocab, text.encode(), b"root")
        if not pointer:
            raise EngineError("llama.cpp can't read the grammar of these functions: leave out strict_tools.")
        self.vocabulary, self.trigger = vocabulary, trigger
        self._start = GrammarState(vocabulary, pointer)
        self._crossing: dict[bytes, list[int]] = {}

    def begin(self, text: bytes = b"") -> GrammarState | None:
        """The state after this text behind the trigger; None if it may not come."""
        state = self._start.copy()
        return state if state.advance_text(text) else None

    def crossing(self, begun: bytes) -> list[int]:
        """Tokens that complete the trigger, of which this much is written, and go on in a way that no call does."""
        if begun not in self._crossing:
            rest = self.trigger[len(begun) :]
            found = self.vocabulary.beginning_with(rest) if begun else self.vocabulary.holding(rest)
            pairs = [(piece[piece.index(rest) + len(rest) :], token) for piece, token in found]
            self._crossing[begun] = [token for after, token in pairs if self.begin(after) is None]
        return self._crossing[begun]


class CallGuide:
    """One reply: whether it is inside a call, and which tokens may come. `over`: it was to be one call, and is."""

    def __init__(self, grammar: CallGrammar, ends: frozenset[int]) -> None:
        self._grammar, self._ends = grammar, ends
        self._state = None if grammar.trigger else grammar.begin()
        self.over = False
        self._tail = b""  # of the text outside calls, what may be a part of the trigger

    def allowed(self, logits: Logits, greedy: bool) -> Logits:
        """`logits`, (vocabulary,), or a copy without what may not come. `greedy`: the likeliest token will be taken,
        so that one look is enough if it may come."""
        if self._state is None:
            return self._outside(logits)
        likeliest = int(logits.argmax())
        if greedy and likeliest not in self._ends and self._state.accepts(likeliest):
            return logits
        accepted = self._state.accepted(np.arange(len(logits), dtype=np.int32))
        accepted[[end for end in self._ends if end < len(logits)]] = False  # the call isn't complete
        return np.where(accepted, logits, np.float32(-np.inf))

    def _outside(self, logits: Logits) -> Logits:
        trigger, tail = self._grammar.trigger, self._tail
        begun = [trigger[:size] for size in range(len(trigger)) if tail.endswith(trigger[:size])]
        forbidden = [token for each in begun for token in self._grammar.crossing(each)]
        if not forbidden:
            return logits
        left = logits.copy()
        left[forbidden] = -np.inf
        return left

    def note(self, token: int) -> None:
        """This is the reply's next token."""
        if self._state is not None:
            # a token that may not come is one that a logit_bias of +inf, say, has forced: the call is given up
            advanced = self._state.advance(token)
            if not advanced or self._state.complete:
                self._state, self.over = None, advanced and not self._grammar.trigger
            return
        trigger = self._grammar.trigger
        if not trigger:
            return
        text = self._tail + self._grammar.vocabulary.pieces[token]
        at = text.find(trigger)
        if at >= 0:
            self._state, self._tail = self._grammar.begin(text[at + len(trigger) :]), b""
        else:
            self._tail = text[-len(trigger) + 1 :] if len(trigger) > 1 else b""
