"""A dialogue, and what its exchanges are written with."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

from .lexicon import FORMS, POOLS, Lexicon
from .talk import plain, result_sentence
from .tools import Tool, Value

Message = dict[str, Any]
_VERBS = frozenset(POOLS["verb"] + FORMS["imperative"])


@dataclass
class Turn:
    """One assistant message that is to be learnt or checked, with the name of its skill."""

    skill: str
    index: int  # of the assistant message in Dialogue.messages


@dataclass
class Dialogue:
    messages: list[Message] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    turns: list[Turn] = field(default_factory=list)


class Exchange:
    """What every skill is written with. `evaluation` uses the held-out words, tools and forms."""

    def __init__(self, seed: int, evaluation: bool = False) -> None:
        self.rng = random.Random(seed)
        self.lex = Lexicon(self.rng, evaluation)
        self.evaluation = evaluation

    def start(self, tools: list[Tool], system: float = 0.4) -> Dialogue:
        self.offered = tools
        d = Dialogue(tools=[t.schema() for t in tools] or None)
        if self.rng.random() < system:
            d.messages.append({"role": "system", "content": self.lex.pick("system")})
        self.facts: dict[str, str] = {}
        return d

    def style(self, text: str, keep_case: bool = False) -> str:
        """The same words as people type them: case, politeness, end marks."""
        r = self.rng
        if r.random() < 0.2 and not text.startswith(("please", "can you")):
            text = self.lex.form("style").format(text)
        if r.random() < 0.45 and not keep_case:
            text = text[0].upper() + text[1:]
        if text[-1] in "?." and r.random() < 0.3:
            text = text[:-1]
        elif text[-1].isalnum() and r.random() < 0.25:
            text += r.choice([".", "!", ".", "?"])
        return text

    def ask_style(self, text: str, verb: str = "") -> str:
        """A request as people type it. One that begins with a verb (`verb`, or a known one) may get more polite."""
        r = self.rng
        first = text.split()[0].lower()
        imperative = first == verb or first in _VERBS
        if imperative and r.random() < 0.3:
            text = r.choice(
                ["please {}", "can you {}?", "could you {}?", "I want you to {}", "I need you to {}", "would you {}?"]
            ).format(text)
        elif imperative and r.random() < 0.1:
            text = r.choice(["please could you {}", "I'd like to {}", "let's {}", "go and {}"]).format(text)
        return self.style(text)

    def user(self, d: Dialogue, text: str) -> None:
        d.messages.append({"role": "user", "content": text})

    def reply(self, d: Dialogue, skill: str, text: str) -> None:
        d.turns.append(Turn(skill, len(d.messages)))
        d.messages.append({"role": "assistant", "content": text})

    def calls(self, d: Dialogue, skill: str, calls: list[tuple[str, dict[str, Value]]]) -> None:
        d.turns.append(Turn(skill, len(d.messages)))
        made = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
        d.messages.append({"role": "assistant", "content": "", "tool_calls": made})
        results = [self.result() for _ in calls]
        d.messages += [{"role": "tool", "content": text} for text in results]
        self.reply(d, "result", " ".join(result_sentence(text) for text in results))

    def result(self) -> str:
        """What a tool returns: a bare value, a sentence, JSON, an error, or nothing."""
        r, lex = self.rng, self.lex

        def value() -> Any:
            return lex.value(
                r.choice(["int", "number", "word", "name", "place", "thing", "code", "date", "time", "color"])
            )

        roll = r.random()
        if roll < 0.34:
            return plain(value())
        if roll < 0.58:
            subject = r.choice(
                [
                    "The {n} is {v}.",
                    "It is {v} in {w}.",
                    "{v} {w} {x}.",
                    "Your {n} {v} is ready.",
                    "{w}: {v} and {x}.",
                    "The {n} of {w} was {v}, {x}.",
                    "{v} {n} found!",
                    "There are {v} {n} in {w}.",
                ]
            )
            subject = r.choice(
                [
                    subject,
                    "It is {v} and {x} in {w}.",
                    "I sent it to {w}.",
                    "The {n} for {w} costs {v}.",
                    "{w} has {v} {n}.",
                ]
            )
            text = subject.format(n=lex.pick("noun"), v=plain(value()), w=plain(value()), x=plain(value()))
            return text[0].upper() + text[1:]
        if roll < 0.78:
            keys = [
                r.choice([lex.pick("noun"), lex.parameter().name, lex.word().lower()]) for _ in range(r.randint(1, 4))
            ]
            return json.dumps({k: value() for k in keys}, ensure_ascii=False)
        if roll < 0.85:
            return json.dumps([value() for _ in range(r.randint(1, 4))], ensure_ascii=False)
        if roll < 0.92:
            reason = r.choice(
                [
                    "{n} {v} not found",
                    "no such {n}",
                    "the {n} is not available",
                    "{v} is not a valid {n}",
                    "the {n} timed out",
                ]
            )
            return "Error: " + reason.format(n=lex.pick("noun"), v=plain(value())) + r.choice(["", "."])
        return r.choice(["None", "null", "ok", "done", "true", "success"])
