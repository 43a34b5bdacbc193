"""Tools for the generated dialogues: everyday ones with natural requests, and invented ones of any name and shape."""

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


_KNOWN, _HELD_OUT = read_families("known_tools.txt"), read_families("held_out_tools.txt")


def known_tool(lex: Lexicon, *, base_names: bool = False) -> Tool:
    """An everyday tool. Training also renames it and its parameters; the evaluation of known tools does not."""
    family = lex.rng.choice(_KNOWN)
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


def invented_tool(lex: Lexicon, verb: str | None = None, noun: str | None = None) -> Tool:
    """A tool of an unseen name: verb and noun (or an invented word), with 0 to 3 parameters of any kind."""
    r = lex.rng
    # invented words, so that names are copied and not known by heart
    verb = verb or (lex.pick("verb") if r.random() < 0.6 else lex.word().lower())
    noun = noun or (lex.pick("noun") if r.random() < 0.6 else lex.word().lower())
    name = r.choice([f"{verb}_{noun}"] * 4 + [f"{noun}_{verb}", f"{verb}{noun.capitalize()}", f"{verb}_the_{noun}"])
    opaque = r.random() < 0.12
    if opaque:
        name = r.choice([lex.word().lower(), f"{lex.word().lower()}_{lex.word().lower()}", f"tool_{r.randint(1, 99)}"])
    params: list[Parameter] = []
    for _ in range(r.choices([0, 1, 2, 3], [1, 9, 8, 5])[0]):
        p = lex.parameter()
        if p.name not in [q.name for q in params] and p.name not in (verb, noun):
            params.append(p)
    if r.random() < 0.12:  # the tool's own object is what it takes: lock_door(door)
        params = [Parameter(noun, r.choice(["thing", "name", "word", "place", "color", "code"])), *params[:2]]
    required = [p.name for p in params if r.random() < 0.85]
    descriptions = [
        f"{verb.capitalize()} the {noun}.",
        f"{verb.capitalize()} a {noun}.",
        f"{verb.capitalize()} {noun}s.",
    ]
    if params:
        by = params[0].name.replace("_", " ")
        descriptions += [
            f"{verb.capitalize()} a {noun} by {by}.",
            f"{verb.capitalize()} the {noun} with the given {by}.",
        ]
    desc = "" if r.random() < 0.15 and not opaque else r.choice(descriptions)
    shown = {
        p.name: f"The {p.name.replace('_', ' ')}" + r.choice(["", ".", f" of the {noun}"])
        for p in params
        if r.random() < 0.25
    }

    def ask(lx: Lexicon) -> tuple[str, dict[str, Value]]:
        return _explicit_request(lx, verb, noun, params, required)

    return Tool(name, desc, params, required, shown, ask, topic=f"{verb} {noun}", words=frozenset([noun]))


# how people give a value without naming its parameter; with several parameters only the first form is clear
_NATURAL = {
    "place": ["in {v}", "for {v}", "at {v}"],
    "name": ["by {v}", "for {v}", "of {v}"],
    "date": ["on {v}", "for {v}"],
}
_NATURAL |= {
    "time": ["at {v}"],
    "email": ["to {v}", "for {v}"],
    "language": ["in {v}"],
    "topic": ["about {v}", "on {v}"],
}
_NATURAL |= {
    "phrase": ["saying {v}", 'with the text "{v}"', "that says {v}"],
    "code": ["with code {v}", "{v}", "number {v}"],
}


def _explicit_request(
    lex: Lexicon, verb: str, noun: str, params: list[Parameter], required: list[str]
) -> tuple[str, dict[str, Value]]:
    r = lex.rng
    given = [p for p in params if p.name in required or r.random() < 0.4]
    args = {p.name: lex.value(p.kind, p.choices) for p in given}
    spoken = next((p for p in given if p.name == noun or (p.kind == "enum" and r.random() < 0.25)), None)
    head = r.choice(
        [f"{verb} the {noun}", f"{verb} a {noun}", f"{verb} {noun}", f"{verb} my {noun}", f"{verb} this {noun}"]
    )
    if spoken is not None:  # "lock the kitchen door", "order a large pizza"
        head = r.choice([f"{verb} the {{}} {noun}", f"{verb} a {{}} {noun}", f"{verb} {{}} {noun}"])
        if spoken.name == noun and r.random() < 0.5:
            head = r.choice([f"{verb} the {{}}", f"{verb} {{}}", f"{verb} my {{}}"])
        head = head.format(_said(lex, args[spoken.name]))
    said = [p for p in given if p is not spoken]
    r.shuffle(said)
    kinds = [p.kind for p in given]
    pieces = []
    for p in said:
        clear = p.kind in _NATURAL and kinds.count(p.kind) == 1 and not (p.kind == "language" and "place" in kinds)
        if clear and r.random() < 0.35:
            forms = _NATURAL[p.kind]
            pieces.append((r.choice(forms) if len(given) == 1 else forms[0]).format(v=args[p.name]))
        elif p.type in ("integer", "number") and r.random() < 0.2:  # "for 12 hours"
            pieces.append(
                f"{r.choice(['for ', '', 'of ', 'with '])}{_said(lex, args[p.name])} {p.name.replace('_', ' ')}"
            )
        elif len(given) == 1 and p.kind not in ("bool", "phrase") and r.random() < 0.3:
            pieces.append(
                r.choice(["{v}", "for {v}", "with {v}", "number {v}" if p.type == "integer" else "{v}"]).format(
                    v=_said(lex, args[p.name])
                )
            )
        else:
            pieces.append(_explicit(lex, p, args[p.name]))
    joiner = r.choice([" ", " and ", ", "])
    text = (head + " " + joiner.join(pieces)).strip()
    if (pieces and "=" in pieces[0]) or r.random() < 0.04:
        text = f"{head}: {joiner.join(pieces)}" if pieces else head
    return text, {p.name: args[p.name] for p in params if p.name in args}


def _said(lex: Lexicon, value: Value) -> str:
    if isinstance(value, bool):
        return lex.rng.choice([["false", "no", "off"], ["true", "yes", "on"]][value])
    if isinstance(value, str) and lex.rng.random() < 0.1:
        return lex.rng.choice(['"{}"', "'{}'"]).format(value)
    return value if isinstance(value, str) else json.dumps(value)


def _explicit(lex: Lexicon, p: Parameter, value: Value) -> str:
    r = lex.rng
    words = p.name.replace("_", " ") if r.random() < 0.7 else p.name
    if p.kind == "bool" and r.random() < 0.4:
        forms = [f"not {words}", f"make it not {words}"], [f"make it {words}", f"{words}"]
        if lex.evaluation:
            forms = [f"it is not {words}"], [f"it should be {words}"]
        return r.choice(forms[bool(value)])
    form = lex.form("parameter").format(p=words, v=_said(lex, value))
    # now and then a word that was never seen before: a form is understood by its other words
    return f"{lex.word().lower()} {form}" if not lex.evaluation and r.random() < 0.06 else form
