"""Invented tools of any name and shape, with the requests that call them."""

from __future__ import annotations

import json

from .lexicon import POOLS, Lexicon, Parameter
from .tools import HELD_OUT_NAMES, Tool, Value

# verbs of tools that answer a question: "what is the price of milk?" calls get_price or check_price
_ASKING = "get find check show fetch lookup read compute estimate describe query locate measure".split()
_LEADING = "with where using set use for having let make put on by in at about saying".split()
_REAL_NAMES = {entry.split(":")[0] for entry in POOLS["parameter"]}


def _new(lex: Lexicon) -> str:
    return lex.word().lower()


def invented_tool(lex: Lexicon, verb: str | None = None, noun: str | None = None) -> Tool:
    """A tool of an unseen name: verb and noun (or an invented word), with 0 to 3 parameters of any kind."""
    r = lex.rng
    # invented words, so that names are copied and not known by heart
    verb = verb or (r.choice(_ASKING) if r.random() < 0.15 else lex.pick("verb") if r.random() < 0.75 else _new(lex))
    noun = noun or (lex.pick("noun") if r.random() < 0.75 else _new(lex))
    name = r.choice([f"{verb}_{noun}"] * 4 + [f"{noun}_{verb}", f"{verb}{noun.capitalize()}", f"{verb}_the_{noun}"])
    if name in HELD_OUT_NAMES:  # such a tool is for the evaluation alone
        return invented_tool(lex)
    opaque = r.random() < 0.06
    if opaque:
        name = r.choice([_new(lex), f"{_new(lex)}_{_new(lex)}", f"tool_{r.randint(1, 99)}"])
    params: list[Parameter] = []
    for _ in range(r.choices([0, 1, 2, 3], [1, 9, 8, 5])[0]):
        p = lex.parameter()
        if p.name not in [q.name for q in params] and p.name not in (verb, noun):
            params.append(p)
    if r.random() < 0.16:  # the tool's own object is what it takes: lock_door(door)
        kind = r.choice(["thing", "name", "word", "place", "color", "code", "animal", "topic", "job"])
        params = [Parameter(noun, kind), *params[:2]]
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

    words = frozenset([noun])
    return Tool(name, desc, params, required, shown, ask, topic=f"{verb} {noun}", words=words, asks=verb in _ASKING)


# how people give a value without naming its parameter; with several parameters only the first form is clear
_NATURAL = {
    "place": ["in {v}", "for {v}", "at {v}"],
    "name": ["by {v}", "for {v}", "of {v}"],
    "date": ["on {v}", "for {v}"],
    "time": ["at {v}"],
    "email": ["to {v}", "for {v}"],
    "language": ["in {v}"],
    "topic": ["about {v}", "on {v}"],
    "phrase": ["saying {v}", 'with the text "{v}"', "that says {v}"],
    "code": ["with code {v}", "{v}", "number {v}"],
}


def _explicit_request(
    lex: Lexicon, verb: str, noun: str, params: list[Parameter], required: list[str]
) -> tuple[str, dict[str, Value]]:
    r = lex.rng
    given = [p for p in params if p.name in required or r.random() < 0.4]
    args = {p.name: lex.value(p.kind, p.choices) for p in given}
    alone = len(given) == 1 and (len(params) == 1 or required == [given[0].name])  # clear without its name
    if verb in _ASKING and alone and r.random() < 0.4:
        kind = given[0].kind
        if kind in ("name", "place", "thing", "topic", "word", "animal", "code", "date", "time", "job", "color"):
            by = r.choice(["of", "for", "of", {"place": "in", "date": "on", "time": "at"}.get(kind, "of")])
            return lex.form("asking").format(n=noun, x=f"{by} {_said(lex, args[given[0].name])}"), args
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
        clear = clear and (p.name in _REAL_NAMES or alone)
        if clear and r.random() < 0.35:
            forms = _NATURAL[p.kind]
            pieces.append((r.choice(forms) if len(given) == 1 else forms[0]).format(v=args[p.name]))
        elif p.type in ("integer", "number") and r.random() < 0.2:  # "for 12 hours"
            pieces.append(
                f"{r.choice(['for ', '', 'of ', 'with '])}{_said(lex, args[p.name])} {p.name.replace('_', ' ')}"
            )
        elif alone and p.kind not in ("bool", "phrase") and r.random() < 0.3:
            pieces.append(
                r.choice(["{v}", "for {v}", "with {v}", "number {v}" if p.type == "integer" else "{v}"]).format(
                    v=_said(lex, args[p.name])
                )
            )
        else:
            pieces.append(_explicit(lex, p, args[p.name]))
    spaced = all(piece.split(" ")[0] in _LEADING for piece in pieces[1:])
    joiner = r.choice([" and ", ", ", ", and ", *([" "] * 2 * spaced)])
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
    return lex.form("parameter").format(p=words, v=_said(lex, value))
