"""The skill of remembering: the user tells something about themselves, and asks for it later."""

from __future__ import annotations

from .exchange import Dialogue, Exchange
from .talk import plain


class Memory(Exchange):
    """Facts that the user tells, and questions about them."""

    def tell(self, d: Dialogue) -> None:
        """The user says one or two things about themselves."""
        r = self.rng
        if r.random() < 0.3:
            return self._tell_name(d)
        if r.random() < 0.2:
            return self._tell_special(d)
        facts = [self._fact() for _ in range(1 if r.random() < 0.75 else 2)]
        facts = list(dict(facts).items())
        said = " and ".join(
            ("my {a} is {v}" if len(facts) > 1 else self.lex.form("fact")).format(a=a, v=v) for a, v in facts
        )
        self.user(d, self.style(said, keep_case=said.startswith(facts[0][1])))
        self.facts.update(facts)
        self.reply(d, "memory", "Got it, " + " and ".join(f"your {a} is {v}" for a, v in facts) + ".")

    def _fact(self) -> tuple[str, str]:
        r = self.rng
        if r.random() < 0.45:
            owner = r.choice(["", "", "favorite ", "best ", "new ", "old "])
            attribute = owner + r.choice(
                [
                    self.lex.pick("noun"),
                    self.lex.word().lower(),
                    self.lex.pick("parameter").split(":")[0].replace("_", " "),
                ]
            )
            kind = r.choice(["word", "name", "place", "thing", "int", "code", "color"])
        else:
            attribute, kind = self.lex.pick("attribute").split(":")
        if attribute == "name" and "name" in self.facts:
            attribute = "nickname"
        return attribute, plain(self.lex.value(kind))

    def _name(self) -> str:
        r = self.rng
        name = str(self.lex.value("name")) if r.random() < 0.75 else self.lex.word().capitalize()
        return name.lower() if r.random() < 0.1 else name

    def _tell_name(self, d: Dialogue) -> None:
        name = self._name()
        text = self.lex.form("name").format(n=name)
        self.facts["name"] = name
        answer = f"Nice to meet you, {name}!"
        if self.rng.random() < 0.25 and "name" not in text.split(",")[0][:3]:
            a, v = self._fact()
            if a != "name":
                text += f" and my {a} is {v}"
                self.facts[a] = v
                answer += f" Your {a} is {v}."
        self.user(d, self.style(text))
        self.reply(d, "memory", answer)

    def _tell_special(self, d: Dialogue) -> None:
        """Facts that have their own verbs: where one lives, one's age, job, likes, and the name of a pet."""
        r, lex = self.rng, self.lex
        roll = r.randrange(5)
        if roll == 0:
            v = str(lex.value("place"))
            text, key, answer = (
                r.choice(["I live in {v}", "I am from {v}", "I come from {v}", "my home is in {v}"]),
                "@live",
                "you live in {v}",
            )
        elif roll == 1:
            v = str(r.randint(5, 99))
            text, key, answer = (
                r.choice(["I am {v} years old", "I'm {v} years old", "I am {v}"]),
                "@age",
                "you are {v} years old",
            )
        elif roll == 2:
            v = str(lex.value("job"))
            text, key, answer = (
                r.choice(["I work as a {v}", "I am a {v}", "my work is being a {v}"]),
                "@job",
                "you work as a {v}",
            )
        elif roll == 3:
            v = str(lex.value("topic"))
            text, key, answer = (
                r.choice(["I like {v}", "I love {v}", "I really like {v}", "I enjoy {v}"]),
                "@like",
                "you like {v}",
            )
        else:
            pet, v = lex.pick("animal"), self._name()
            text, key, answer = (
                r.choice([f"I have a {pet} named {{v}}", f"I have a {pet} called {{v}}", f"my {pet} is called {{v}}"]),
                f"{pet}'s name",
                f"your {pet}'s name is {{v}}",
            )
        self.facts[key] = v
        self.user(d, self.style(text.format(v=v)))
        self.reply(d, "memory", f"Got it, {answer.format(v=v)}.")

    def recall(self, d: Dialogue) -> None:
        """The user asks for something they told, or (one in five) did not tell."""
        r = self.rng
        told = list(self.facts)
        if not told or r.random() < 0.2:
            a = self._fact()[0]
            if a not in self.facts and not (
                (a == "age" and "@age" in told) or a in ("job", "city", "hometown", "hobby")
            ):
                self.user(d, self._question(a))
                self.reply(d, "memory", f"You have not told me your {a} yet.")
            return
        a = r.choice(told)
        v = self.facts[a]
        if a == "name":
            self.user(d, self.style(self.lex.form("ask name")))
            self.reply(d, "memory", f"Your name is {v}.")
        elif a.startswith("@"):
            forms, answer = {
                "@live": (
                    ["where do I live?", "which city do I live in?", "do you know where I live?"],
                    "You live in {v}.",
                ),
                "@age": (["how old am I?", "what is my age?", "do you know how old I am?"], "You are {v} years old."),
                "@job": (["what is my job?", "what do I work as?", "what do I do for a living?"], "You work as a {v}."),
                "@like": (["what do I like?", "what do I enjoy?", "do you know what I like?"], "You like {v}."),
            }[a]
            self.user(d, self.style(r.choice(forms)))
            self.reply(d, "memory", answer.format(v=v))
        else:
            self.user(d, self._question(a))
            self.reply(d, "memory", f"Your {a} is {v}.")

    def _question(self, a: str) -> str:
        return self.style(self.lex.form("ask fact").format(a=a))

    def recall_all(self, d: Dialogue) -> None:
        said = {
            "@live": "You live in {v}.",
            "@age": "You are {v} years old.",
            "@job": "You work as a {v}.",
            "@like": "You like {v}.",
        }
        answers = [said.get(a, f"Your {a} is {{v}}.").format(v=v) for a, v in self.facts.items()]
        self.user(d, self.style(self.lex.form("ask all")))
        self.reply(d, "memory", " ".join(answers) or "You have not told me anything yet.")
