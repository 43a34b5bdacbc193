"""Tools for the generated dialogues, and the everyday ones among them, with requests as people say them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .lexicon import DATA, Lexicon, Parameter

Value = str | int | float | bool


@dataclass
class Tool:
    """A tool as a prompt shows it, with a way to make a request for it."""

    name: str
    desc: str
    params: list[Parameter]
    required: list[str]
    param_desc: dict[str, str] = field(default_factory=dict)
    # draws (request text, arguments)
    ask: Callable[[Lexicon], tuple[str, dict[str, Value]]] | None = None
    bare: list[str] = field(default_factory=list)  # requests that leave out the one required parameter
    topic: str = ""
    words: frozenset[str] = frozenset()  # of an everyday tool: all that its names and description say; else its noun
    asks: bool = False  # whether an invented tool answers a question about its noun

    def schema(self) -> dict[str, Any]:
        """The tool in the OpenAI function format, as a chat template receives it."""
        props: dict[str, Any] = {}
        for p in self.params:
            props[p.name] = {"type": p.type}
            if p.name in self.param_desc:
                props[p.name]["description"] = self.param_desc[p.name]
            if p.choices:
                props[p.name]["enum"] = list(p.choices)
        parameters = {"type": "object", "properties": props, "required": self.required}
        return {"type": "function", "function": {"name": self.name, "description": self.desc, "parameters": parameters}}

    def confusable(self, other: Tool) -> bool:
        """Whether one request could mean either tool. Invented tools that differ in verb or noun are told apart."""
        if self.name == other.name or self.topic == other.topic:
            return True
        if self.asks and other.asks and self.words == other.words:
            return True
        return (
            len(self.words) + len(other.words) > 2
            and bool(self.words & other.words)
            and 1 in (len(self.words), len(other.words))
        )


# requests for everyday tools that leave out the one parameter
BARE = {
    "get_weather": [
        "what is the weather?",
        "how is the weather?",
        "what's the weather like?",
        "is it raining?",
        "tell me the weather",
    ],
    "set_alarm": ["set an alarm", "set my alarm", "I need an alarm", "wake me up"],
    "play_music": ["play some music", "play music", "put on some music", "play a song"],
    "track_package": ["where is my package?", "track my package", "where is my parcel?"],
    "get_news": ["what is the news?", "give me the news", "any news?", "show me the headlines"],
    "get_population": ["how many people live there?", "what is the population?"],
    "web_search": ["search the web", "look something up", "search something for me"],
    "get_stock_price": ["what is the stock price?", "get a stock price"],
}

UNITS = "km miles meters feet inches cm kg pounds grams ounces liters gallons celsius fahrenheit hours minutes seconds "
UNITS += "days yards mm kelvin tons"
MONEY = "USD EUR GBP JPY CHF CAD AUD SEK NOK INR CNY BRL"
ROOMS = "kitchen bedroom bathroom office hall garage cellar attic lounge garden nursery study"
SMALL_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def arithmetic(lex: Lexicon) -> tuple[str, str]:
    """An arithmetic question: the words of the user, and the expression that a calculator takes."""
    r = lex.rng
    spoken = {"+": ["plus", "+", "and"], "-": ["minus", "-", "less"], "*": ["times", "*", "x", "multiplied by"]}
    spoken["/"] = ["divided by", "/", "over"]

    def operand() -> str:
        roll = r.random()
        if roll < 0.08:
            return str(round(r.uniform(0.1, 99), r.randint(1, 2)))
        return str(r.choice([r.randint(0, 12), r.randint(2, 99), r.randint(2, 999), r.randint(100, 99999)]))

    text = expr = operand()
    for _ in range(1 if r.random() < 0.8 else 2):
        op, right = r.choice("+-**/"), operand()
        word = r.choice(spoken[op][:2] if r.random() < 0.8 else spoken[op])
        tight = word in "+-*/" and r.random() < 0.4
        text += f"{word}{right}" if tight else f" {word} {right}"
        expr += f" {op} {right}"
    if lex.rng.random() < 0.06 and "+" not in text and "/" not in text:
        base, power = r.randint(2, 30), r.randint(2, 9)
        return f"{base} to the power of {power}", f"{base} ** {power}"
    return text, expr


def draw(lex: Lexicon, kind: str, choices: tuple[str, ...]) -> tuple[str, Value]:
    """(text in the request, value in the call) for a kind of a natural tool's parameter."""
    r = lex.rng
    if kind == "arith":
        return arithmetic(lex)
    if kind == "small":
        n = r.randint(2, 10)
        return (SMALL_WORDS[n] if r.random() < 0.4 else str(n)), n
    if kind == "sides":
        n = r.choice([4, 6, 8, 10, 12, 20, 100, r.randint(3, 50)])
        return str(n), n
    pools = {"unit": UNITS, "money": MONEY, "room": ROOMS}
    if kind in pools:
        v: Value = r.choice(pools[kind].split()) if kind == "room" or r.random() > 0.1 else lex.word().lower()
    elif kind == "ticker":
        v = "".join(r.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=r.randint(2, 5)))
    elif kind == "query":
        v = " ".join(
            str(lex.value(r.choice(["thing", "topic", "place", "word", "name"]))) for _ in range(r.randint(1, 3))
        )
    elif kind == "noun":
        v = r.choice([lex.pick("noun"), lex.word().lower()])
    else:
        v = lex.value(kind, choices)
    return (v if isinstance(v, str) else json.dumps(v)), v


@dataclass(frozen=True)
class Family:
    """An everyday tool as data/*_tools.txt describe it. A parameter is `name/alternatives:kind`, `=` with the values of
    an enum, `?` if it is optional; a request has the parameters' names in braces."""

    names: list[str]
    desc: str
    params: list[str]
    requests: list[str]
    held_out: list[str]


def read_families(name: str) -> list[Family]:
    families = []
    for block in (DATA / name).read_text(encoding="utf-8").split("[tool]\n")[1:]:
        head, _, rest = block.partition("requests:\n")
        fields = dict(line.split(": ", 1) if ": " in line else (line.rstrip(":"), "") for line in head.splitlines())
        requests, _, held_out = (
            [line.strip() for line in part.splitlines() if line.strip()] for part in rest.partition("held out:\n")
        )
        params = [p for p in fields["parameters"].split("; ") if p]
        families.append(Family(fields["names"].split(", "), fields["description"], params, requests, held_out))
    return families


_KNOWN, _MORE = read_families("known_tools.txt"), read_families("more_tools.txt")
_TRAINED_ONLY = read_families("training_tools.txt")  # without held-out requests, so not evaluated
_HELD_OUT = read_families("held_out_tools.txt")
HELD_OUT_NAMES = {name for family in _HELD_OUT for name in family.names}


def known_tool(lex: Lexicon, *, base_names: bool = False) -> Tool:
    """An everyday tool. Training also renames it and its parameters; the evaluation of known tools does not."""
    sources = [_KNOWN, _MORE] if lex.evaluation else [_KNOWN, _MORE, _MORE, _TRAINED_ONLY, _TRAINED_ONLY]
    family = lex.rng.choice(lex.rng.choice(sources))
    requests = family.held_out if lex.evaluation else family.requests
    return _natural(lex, family, requests, rename=not (base_names or lex.evaluation))


def held_out_tool(lex: Lexicon) -> Tool:
    """An everyday tool that training never shows."""
    family = lex.rng.choice(_HELD_OUT)
    return _natural(lex, family, family.requests, rename=False)


def _natural(lex: Lexicon, family: Family, requests: list[str], rename: bool) -> Tool:
    r = lex.rng
    names = family.names
    name = names[0] if not rename or r.random() < 0.5 else r.choice([*names, lex.word().lower()])
    params, renamed, required = [], {}, []
    for spec in family.params:
        alternatives, kind = spec.split(":")
        optional = kind.endswith("?")
        kind, _, enum = kind.rstrip("?").partition("=")
        options = alternatives.split(",")
        chosen = options[0] if not rename or r.random() < 0.5 else r.choice([*options, lex.word().lower()])
        while chosen in renamed.values():
            chosen = lex.word().lower()
        renamed[options[0]] = chosen
        json_kind = {"small": "int", "sides": "int"}.get(kind, kind)
        params.append((options[0], kind, Parameter(chosen, json_kind, tuple(enum.split(",")) if enum else ())))
        if not optional:
            required.append(chosen)
    desc = family.desc if not rename or r.random() < 0.8 or name not in names else ""
    shown = {p.name: key.replace("_", " ") for key, _, p in params if rename and (p.name != key or r.random() < 0.2)}

    def ask(lx: Lexicon) -> tuple[str, dict[str, Value]]:
        template = lx.rng.choice(requests)
        texts, args = {}, {}
        for key, kind, p in params:
            if "{" + key + "}" in template:
                texts[key], args[p.name] = draw(lx, kind, p.choices)
        if "{count}d" in template:
            texts["count"] = json.dumps(args[params[0][2].name])
        return template.format(**texts), args

    words = frozenset(",".join(names).replace("_", ",").split(",") + family.desc.lower().rstrip(".").split())
    bare = BARE.get(names[0], [])
    return Tool(name, desc, [p for *_, p in params], required, shown, ask, bare, ",".join(names), words)
