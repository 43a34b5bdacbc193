"""Word pools for the generated dialogues, each split into a training and an evaluation half.

Every pool is cut deterministically: one entry in five is kept for evaluation and is never seen in training. Beside the
pools, `Lexicon` invents words, codes, numbers, dates and addresses, so that copying is learnt for any spelling.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"


def read_pools() -> dict[str, list[str]]:
    """The pools of *words.txt: a `[name]`, then entries between bars. An attribute or a parameter is `name:kind of
    value`, an enum its values between spaces."""
    pools: dict[str, list[str]] = {}
    for file in sorted(DATA.glob("*words.txt")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("["):
                pool = pools.setdefault(line.strip("[]"), [])
            elif line:
                pool.extend(line.split("|"))
    return pools


POOLS = read_pools()


def read_forms() -> dict[str, list[str]]:
    """The forms of forms.txt by name: what users say, with the parts to fill in between braces. Those of a name that
    ends in " / held out" are for the evaluation."""
    forms: dict[str, list[str]] = {}
    for line in (DATA / "forms.txt").read_text(encoding="utf-8").split("\n"):
        if line.startswith("["):
            found = forms.setdefault(line.strip("[]"), [])
        elif line:
            found.append(line)
    return forms


FORMS = read_forms()


def split(pool: list[str], evaluation: bool) -> list[str]:
    """The part of `pool` used for training, or the one fifth held out for evaluation."""
    unique = list(dict.fromkeys(w.strip() for w in pool))
    return [w for i, w in enumerate(unique) if (i % 5 == 3) == evaluation]


@dataclass(frozen=True)
class Parameter:
    """One parameter of an invented tool: its name, JSON type, kind of value, and enum values if it has them."""

    name: str
    kind: str
    choices: tuple[str, ...] = ()

    @property
    def type(self) -> str:
        return {"int": "integer", "number": "number", "bool": "boolean"}.get(self.kind, "string")


class Lexicon:
    """Draws words and values for one side of the split, from a seeded random generator."""

    def __init__(self, rng: random.Random, evaluation: bool = False) -> None:
        self.rng = rng
        self.evaluation = evaluation
        self._pools = {k: split(v, evaluation) for k, v in POOLS.items() if k != "enum"}
        self._enums = [e.split() for i, e in enumerate(POOLS["enum"]) if (i % 5 == 3) == evaluation]

    def pick(self, pool: str) -> str:
        return self.rng.choice(self._pools[pool])

    def form(self, name: str) -> str:
        """One of the forms of this name, from this side of the split."""
        held_out = FORMS.get(f"{name} / held out")
        return self.rng.choice(held_out if self.evaluation and held_out else FORMS[name])

    def word(self) -> str:
        """An invented word: syllables, or (one in ten) plain random letters."""
        r = self.rng
        if r.random() < 0.1:
            w = "".join(r.choices(string.ascii_lowercase, k=r.randint(3, 7)))
        else:
            onset = [
                "b",
                "br",
                "c",
                "ch",
                "d",
                "dr",
                "f",
                "g",
                "gl",
                "h",
                "j",
                "k",
                "kr",
                "l",
                "m",
                "n",
                "p",
                "pl",
                "qu",
            ]
            onset += ["r", "s", "sh", "st", "t", "th", "tr", "v", "w", "x", "y", "z", "", "fl", "sk", "ph"]
            coda = ["", "", "", "n", "r", "l", "s", "t", "x", "m", "nd", "rk", "ck", "st", "ng", "sh"]
            w = "".join(
                r.choice(onset) + r.choice("aeiouaeiouy") + r.choice(coda) for _ in range(r.choice([1, 2, 2, 2, 2, 3]))
            )
        if len(w) < 3:
            w += r.choice(["lo", "ra", "mi", "nu"])
        return w.capitalize() if r.random() < 0.5 else w.upper() if r.random() < 0.04 else w

    def integer(self) -> int:
        r = self.rng
        return r.choice(
            [r.randint(0, 12), r.randint(2, 99), r.randint(10, 999), r.randint(100, 9999), r.randint(1000, 999999)]
        )

    def number(self) -> int | float:
        r = self.rng
        if r.random() < 0.35:
            return r.randint(1, 999)
        value = round(r.uniform(0, 10 ** r.randint(1, 3)), r.randint(1, 2))
        return -value if r.random() < 0.08 else value

    def code(self) -> str:
        r = self.rng
        letters = "".join(r.choices(string.ascii_uppercase, k=r.randint(1, 3)))
        digits = "".join(r.choices(string.digits, k=r.randint(1, 5)))
        return r.choice(
            [f"{letters}{digits}", f"{letters}-{digits}", f"{digits}{letters}", f"{letters}{digits}{letters[0]}"]
        )

    def date(self) -> str:
        r = self.rng
        days = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday today tomorrow tonight".split()
        months = "January February March April May June July August September October November December".split()
        day = r.randint(1, 28)
        iso = f"{r.randint(2020, 2032)}-{r.randint(1, 12):02d}-{day:02d}"
        return r.choice([r.choice(days), iso, f"{r.choice(months)} {day}", f"{day} {r.choice(months)}"])

    def time(self) -> str:
        r = self.rng
        hour, minute = r.randint(0, 23), r.randint(0, 59)
        return r.choice(
            [
                f"{hour}:{minute:02d}",
                f"{hour % 12 or 12}:{minute:02d} pm",
                f"{hour % 12 or 12} am",
                f"{hour % 12 or 12} pm",
            ]
        )

    def email(self) -> str:
        r = self.rng
        user = r.choice([self.pick("name"), self.word()]).lower()
        return f"{user}@{self.word().lower()}.{r.choice(['com', 'org', 'net', 'io', 'de', 'fr'])}"

    def value(self, kind: str, choices: tuple[str, ...] = ()) -> str | int | float | bool:
        """A value of the kind; one in four names and things is an invented word, so that any spelling is copied."""
        r = self.rng
        if kind == "enum":
            return r.choice(choices)
        if kind == "bool":
            return r.random() < 0.5
        if kind == "int":
            return self.integer()
        if kind in ("number", "code", "date", "time", "email", "word"):
            return getattr(self, kind)()  # type: ignore[no-any-return]
        if kind in ("name", "place", "thing", "topic", "color", "job") and r.random() < 0.3:
            w = self.word()
            return w if kind in ("thing", "topic", "color", "job") and r.random() < 0.5 else w.capitalize()
        chosen = self.pick(kind)
        if kind == "name" and r.random() < 0.15:
            return f"{chosen} {r.choice([self.pick('name'), self.word().capitalize()])}"
        if kind == "phrase" and r.random() < 0.4:
            return " ".join(
                r.choice([self.pick("thing"), self.word(), self.pick("color")]) for _ in range(r.randint(1, 4))
            )
        return chosen if r.random() > 0.12 else chosen.lower()

    def parameter(self) -> Parameter:
        """A parameter, real or (one in four) with an invented name."""
        r = self.rng
        name, kind = self.pick("parameter").split(":")
        if r.random() < 0.25:
            name = self.word().lower()
            kind = r.choice(["word", "int", "number", "place", "name", "thing", "bool", "enum", "phrase", "code"])
        choices: tuple[str, ...] = ()
        if kind == "enum":
            base = r.choice(self._enums) if r.random() < 0.7 else [self.word().lower() for _ in range(r.randint(2, 4))]
            choices = tuple(dict.fromkeys(base))
        return Parameter(name, kind, choices)
