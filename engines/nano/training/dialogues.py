"""Dialogues for training and evaluation: a tool set, a system prompt or none, and several exchanges of various skills.

Every assistant message is a deterministic function of what came before it, so that answers can be compared exactly.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

from .lexicon import Lexicon
from .tools import Tool, Value, held_out_tool, invented_tool, known_tool

Message = dict[str, Any]

HELLO = "Hello! I am Nano. How can I help you?"
NO_TOOL = "Sorry, I have no tool for that."
SEE = "I see. How can I help you?"

# what the user says | what Nano answers; the last third of the user's forms is kept for evaluation
SMALL_TALK = """
hi;hello;hey;hi there;hello there;good morning;good evening;hey nano;hi nano;hello nano;greetings;yo;good day;howdy;good afternoon|Hello! I am Nano. How can I help you?
how are you?;how are you doing?;how do you do?;are you well?;how is it going?;how's it going?;how are you today?;you ok?;how do you feel?|I am fine, thank you. How can I help you?
who are you?;what are you?;what is your name?;what's your name?;your name?;who am I talking to?;introduce yourself;tell me about yourself;do you have a name?;what should I call you?;tell me your name;what are you called?;who is this?;may I know your name?|I am Nano, a small language model that runs on your machine.
what can you do?;how can you help me?;help;what are you good at?;what are your skills?;what do you do?;can you help me?;how do you work?;what can I ask you?;tell me what you can do;what are you able to do?;how could you help?|I can chat a little, remember what you tell me and use the tools that you give me.
thanks;thank you;thank you very much;thanks a lot;great, thanks;thx;many thanks;that's great, thank you;cheers;ok thanks;perfect, thanks;thank you nano;thanks so much;I thank you;thanks, that helped|You are welcome!
bye;goodbye;see you;good night;see you later;bye bye;I have to go;talk to you later;that's all, bye;ciao;have a nice day;bye nano;take care;see you soon;goodbye nano|Goodbye!
who made you?;who created you?;who built you?;where do you come from?;who trained you?;who developed you?;who is your maker?|I was trained from scratch by the kani_lite project.
are you human?;are you a person?;are you a robot?;are you chatgpt?;are you real?;are you an AI?;are you GPT-4?;are you alive?;are you a machine?;are you a bot?|I am Nano, a small language model. I am not a person.
ok;okay;all right;fine;sure;yes;no;good;great;nice;cool;got it;perfect;I understand;understood;alright|All right. How can I help you?
tell me a joke;make me laugh;do you know a joke?;say something funny;joke please;another joke;got any jokes?;I want to hear a joke|I know just one: a small model walks into a bar and forgets the rest.
"""


def _small_talk() -> list[tuple[list[str], list[str], str]]:
    rows = []
    for line in SMALL_TALK.strip().splitlines():
        said, answer = line.rsplit("|", 1)
        forms = said.split(";")
        held = max(1, len(forms) // 5)
        rows.append((forms[:-held], forms[-held:], answer))
    return rows


_ROWS = _small_talk()


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


def result_sentence(text: str) -> str:
    """How Nano tells a tool's result, whatever its form."""
    if text.startswith("Error: "):
        return f"That did not work: {text.removeprefix('Error: ')}"
    try:
        data = json.loads(text)
    except ValueError:
        data = None
    if isinstance(data, dict) and data:
        return _join([f"the {k.replace('_', ' ')} is {_plain(v)}" for k, v in data.items()], capital=True)
    if isinstance(data, list) and data:
        return f"I found {_join([_plain(v) for v in data], capital=False)}"
    if text in ("None", "null", "", "ok", "OK", "true", "True", "done", "success"):
        return "Done."
    if text.endswith((".", "!", "?")):
        return text
    return f"The result is {text}."


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _join(parts: list[str], capital: bool) -> str:
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return (text[0].upper() + text[1:] if capital else text) + "."


class Writer:
    """Writes one dialogue at a time; `evaluation` uses the held-out words, tools and forms."""

    def __init__(self, seed: int, evaluation: bool = False) -> None:
        self.rng = random.Random(seed)
        self.lex = Lexicon(self.rng, evaluation)
        self.evaluation = evaluation

    # --- pieces ---------------------------------------------------------------------------------------------------

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
        if r.random() < 0.12 and not text.startswith(("please", "can you")):
            text = r.choice(["please {}", "{} please", "hey, {}", "nano, {}", "{}, please", "{} for me", "ok, {}", "now {}"]).format(text)
        if r.random() < 0.45 and not keep_case:
            text = text[0].upper() + text[1:]
        if text[-1] in "?." and r.random() < 0.3:
            text = text[:-1]
        elif text[-1].isalnum() and r.random() < 0.25:
            text += r.choice([".", "!", ".", "?"])
        return text

    def ask_style(self, text: str) -> str:
        r = self.rng
        imperative = text.split()[0].isalpha() and text.split()[0].lower() not in (
            "what how who where is do i any tell lights price timer alarm weather number news meaning which what's current time volume".split()
        )
        if imperative and r.random() < 0.3:
            text = r.choice(["please {}", "can you {}?", "could you {}?", "I want you to {}", "I need you to {}", "would you {}?"]).format(text)
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
            return lex.value(r.choice(["int", "number", "word", "name", "place", "thing", "code", "date", "time", "color"]))

        roll = r.random()
        if roll < 0.34:
            return _plain(value())
        if roll < 0.58:
            subject = r.choice(["The {n} is {v}.", "It is {v} in {w}.", "{v} {w} {x}.", "Your {n} {v} is ready.", "{w}: {v} and {x}.", "The {n} of {w} was {v}, {x}.", "{v} {n} found!", "There are {v} {n} in {w}."])
            subject = r.choice([subject, "It is {v} and {x} in {w}.", "I sent it to {w}.", "The {n} for {w} costs {v}.", "{w} has {v} {n}."])
            text = subject.format(n=lex.pick("noun"), v=_plain(value()), w=_plain(value()), x=_plain(value()))
            return text[0].upper() + text[1:]
        if roll < 0.78:
            keys = [r.choice([lex.pick("noun"), lex.parameter().name, lex.word().lower()]) for _ in range(r.randint(1, 4))]
            return json.dumps({k: value() for k in keys}, ensure_ascii=False)
        if roll < 0.85:
            return json.dumps([value() for _ in range(r.randint(1, 4))], ensure_ascii=False)
        if roll < 0.92:
            reason = r.choice(["{n} {v} not found", "no such {n}", "the {n} is not available", "{v} is not a valid {n}", "the {n} timed out"])
            return "Error: " + reason.format(n=lex.pick("noun"), v=_plain(value())) + r.choice(["", "."])
        return r.choice(["None", "null", "ok", "done", "true", "success"])

    # --- skills ---------------------------------------------------------------------------------------------------

    def chat(self, d: Dialogue) -> None:
        train, held, answer = self.rng.choice(_ROWS)
        self.user(d, self.style(self.rng.choice(held if self.evaluation else train)))
        self.reply(d, "chat", answer)

    def hello(self, d: Dialogue) -> None:
        train, held, answer = _ROWS[0]
        self.user(d, self.style(self.rng.choice(held if self.evaluation else train)))
        self.reply(d, "chat", answer)

    def statement(self, d: Dialogue) -> None:
        self.user(d, self.style(self.lex.pick("statement")))
        self.reply(d, "chat", SEE)

    def unknown(self, d: Dialogue) -> None:
        """A question or a request that no tool on offer serves."""
        if self.rng.random() < 0.35 and not any("search" in t.words for t in self.offered):
            text = self.lex.pick("question")
        else:
            tool = self.tool()
            while any(tool.confusable(t) for t in self.offered):
                tool = self.tool()
            assert tool.ask is not None
            text = tool.ask(self.lex)[0]
        self.user(d, self.ask_style(text))
        self.reply(d, "no tool", NO_TOOL)

    def list_tools(self, d: Dialogue) -> None:
        forms = ["what tools do you have?", "which tools can you use?", "list your tools", "show me your tools", "what are your tools?"]
        if self.evaluation:
            forms = ["tell me your tools", "which tools do you have?"]
        self.user(d, self.style(self.rng.choice(forms)))
        names = [t["function"]["name"] for t in d.tools or []]
        if names:
            self.reply(d, "list tools", ("My tools are " if len(names) > 1 else "My tool is ") + _join(names, capital=False))
        else:
            self.reply(d, "list tools", "I have no tools.")

    def recall_all(self, d: Dialogue) -> None:
        forms = ["what do you know about me?", "tell me what you know about me", "what did I tell you?", "what have I told you?"]
        if self.evaluation:
            forms = ["tell me everything you know about me", "so what did I tell you?"]
        said = {"@live": "You live in {v}.", "@age": "You are {v} years old.", "@job": "You work as a {v}.", "@like": "You like {v}."}
        answers = [said.get(a, f"Your {a} is {{v}}.").format(v=v) for a, v in self.facts.items()]
        self.user(d, self.style(self.rng.choice(forms)))
        self.reply(d, "memory", " ".join(answers) or "You have not told me anything yet.")

    def tell(self, d: Dialogue) -> None:
        """The user says one or two things about themselves."""
        r = self.rng
        if r.random() < 0.3:
            return self._tell_name(d)
        if r.random() < 0.2:
            return self._tell_special(d)
        facts = [self._fact() for _ in range(1 if r.random() < 0.75 else 2)]
        facts = list(dict(facts).items())
        forms = ["my {a} is {v}", "my {a} is {v}", "the {a} of mine is {v}", "{v} is my {a}", "remember that my {a} is {v}"]
        forms += ["actually, my {a} is {v}", "note: my {a} is {v}", "my {a} is called {v}", "please remember my {a}: {v}", "I want you to know that my {a} is {v}"]
        if self.evaluation:
            forms = ["you should know my {a} is {v}", "let me tell you that my {a} is {v}", "by the way, my {a} is {v}", "my {a}: {v}"]
        said = " and ".join(r.choice(forms[:2] if len(facts) > 1 else forms).format(a=a, v=v) for a, v in facts)
        self.user(d, self.style(said, keep_case=said.startswith(facts[0][1])))
        self.facts.update(facts)
        self.reply(d, "memory", "Got it, " + " and ".join(f"your {a} is {v}" for a, v in facts) + ".")

    def _fact(self) -> tuple[str, str]:
        r = self.rng
        if r.random() < 0.3:
            owner = r.choice(["", "", "favorite ", "best ", "new ", "old "])
            attribute = owner + r.choice([self.lex.pick("noun"), self.lex.word().lower(), self.lex.pick("parameter").split(":")[0].replace("_", " ")])
            kind = r.choice(["word", "name", "place", "thing", "int", "code", "color"])
        else:
            attribute, kind = self.lex.pick("attribute").split(":")
        if attribute == "name" and "name" in self.facts:
            attribute = "nickname"
        return attribute, _plain(self.lex.value(kind))

    def _name(self) -> str:
        r = self.rng
        name = str(self.lex.value("name")) if r.random() < 0.75 else self.lex.word().capitalize()
        return name.lower() if r.random() < 0.1 else name

    def _tell_name(self, d: Dialogue) -> None:
        name = self._name()
        forms = ["my name is {n}", "I am {n}", "I'm {n}", "call me {n}", "you can call me {n}", "hi, I am {n}", "hello, my name is {n}", "hi, my name is {n}"]
        forms += ["people call me {n}", "the name is {n}", "this is {n}", "hey nano, I'm {n}", "my name's {n}", "actually, my name is {n}", "it's {n}, by the way"]
        if self.evaluation:
            forms = ["everybody calls me {n}", "I am called {n}", "please call me {n}", "hello nano, my name is {n}"]
        text = self.rng.choice(forms).format(n=name)
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
            text, key, answer = r.choice(["I live in {v}", "I am from {v}", "I come from {v}", "my home is in {v}"]), "@live", "you live in {v}"
        elif roll == 1:
            v = str(r.randint(5, 99))
            text, key, answer = r.choice(["I am {v} years old", "I'm {v} years old", "I am {v}"]), "@age", "you are {v} years old"
        elif roll == 2:
            v = str(lex.value("job"))
            text, key, answer = r.choice(["I work as a {v}", "I am a {v}", "my work is being a {v}"]), "@job", "you work as a {v}"
        elif roll == 3:
            v = str(lex.value("topic"))
            text, key, answer = r.choice(["I like {v}", "I love {v}", "I really like {v}", "I enjoy {v}"]), "@like", "you like {v}"
        else:
            pet, v = lex.pick("animal"), self._name()
            text, key, answer = r.choice([f"I have a {pet} named {{v}}", f"I have a {pet} called {{v}}", f"my {pet} is called {{v}}"]), f"{pet}'s name", f"your {pet}'s name is {{v}}"
        self.facts[key] = v
        self.user(d, self.style(text.format(v=v)))
        self.reply(d, "memory", f"Got it, {answer.format(v=v)}.")

    def recall(self, d: Dialogue) -> None:
        """The user asks for something they told, or (one in five) did not tell."""
        r = self.rng
        told = list(self.facts)
        if not told or r.random() < 0.2:
            a = self._fact()[0]
            if a not in self.facts and not (a == "age" and "@age" in told or a in ("job", "city", "hometown", "hobby")):
                self.user(d, self._question(a))
                self.reply(d, "memory", f"You have not told me your {a} yet.")
            return
        a = r.choice(told)
        v = self.facts[a]
        if a == "name":
            forms = ["what is my name?", "what's my name?", "who am I?", "do you know my name?", "tell me my name", "do you remember my name?", "say my name"]
            if self.evaluation:
                forms = ["can you tell me my name?", "remember my name?", "so what is my name?"]
            self.user(d, self.style(r.choice(forms)))
            self.reply(d, "memory", f"Your name is {v}.")
        elif a.startswith("@"):
            forms, answer = {
                "@live": (["where do I live?", "which city do I live in?", "do you know where I live?"], "You live in {v}."),
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
        forms = ["what is my {a}?", "what's my {a}?", "do you remember my {a}?", "tell me my {a}", "do you know my {a}?", "which {a} did I tell you?", "and my {a}?"]
        if self.evaluation:
            forms = ["can you tell me my {a}?", "so what is my {a}?", "please say what my {a} is", "what did I say my {a} is?"]
        return self.style(self.rng.choice(forms).format(a=a))

    def use_tool(self, d: Dialogue, tools: list[Tool], skill: str) -> None:
        r = self.rng
        tool = r.choice(tools)
        assert tool.ask is not None
        roll = r.random()
        if roll < 0.14:
            return self._two_calls(d, tools, skill)
        text, args = tool.ask(self.lex)
        if roll < 0.22 and len(args) == 1 and len(tool.required) == 1 and next(iter(args)) in tool.required:
            bare = tool.bare
            if not bare and tool.topic.count(" ") == 1:
                verb, noun = tool.topic.split(" ")
                bare = [f"{verb} the {noun}", f"{verb} a {noun}", f"{verb} my {noun}"]
            if bare:
                return self._ask_back(d, tool, args, bare)
        self.user(d, self.ask_style(text))
        self.calls(d, skill, [(tool.name, args)])
        if len(args) == 1 and len(tool.params) == 1 and r.random() < 0.12:
            self._follow_up(d, tool, skill)

    def _follow_up(self, d: Dialogue, tool: Tool, skill: str) -> None:
        """The same again with another value, which is all that the user says."""
        assert tool.ask is not None
        value = next(iter(tool.ask(self.lex)[1].values()), None)
        if value is None or isinstance(value, bool):
            return
        forms = ["and {v}?", "what about {v}?", "how about {v}?", "and now {v}", "and with {v}?", "same for {v}", "now {v}", "and for {v}?"]
        if self.evaluation:
            forms = ["also {v}?", "and what about {v}?", "again for {v}"]
        said = value if isinstance(value, str) else json.dumps(value)
        self.user(d, self.style(self.rng.choice(forms).format(v=said)))
        self.calls(d, skill, [(tool.name, {tool.params[0].name: value})])

    def _two_calls(self, d: Dialogue, tools: list[Tool], skill: str) -> None:
        r = self.rng
        first, second = r.choice(tools), r.choice(tools)
        assert first.ask is not None and second.ask is not None
        (a, x), (b, y) = first.ask(self.lex), second.ask(self.lex)
        joiner = r.choice([" and ", ", and then ", " and also ", ". Then ", "; ", ". "])
        if self.evaluation:
            joiner = r.choice([" and ", ". After that, ", " and then "])
        self.user(d, self.style(a.rstrip("?.") + joiner + b))
        self.calls(d, "two calls", [(first.name, x), (second.name, y)])

    def _ask_back(self, d: Dialogue, tool: Tool, args: dict[str, Value], bare: list[str]) -> None:
        """The user leaves out the one parameter. Nano asks for it, unless it was told before."""
        r = self.rng
        (name, value), words = next(iter(args.items())), next(iter(args)).replace("_", " ")
        plain = r.choice(bare)
        head = self.ask_style(plain)
        if isinstance(value, str) and words in self.facts:
            self.user(d, head)
            return self.calls(d, "told", [(tool.name, {name: self.facts[words]})])
        if "@live" in self.facts and tool.params[0].kind == "place":
            here = r.choice([" where I live", " in my city", " at home", " in my town"])
            self.user(d, self.ask_style(plain.rstrip("?") + here))
            return self.calls(d, "told", [(tool.name, {name: self.facts["@live"]})])
        if isinstance(value, str) and r.random() < 0.5 and len(value.split()) < 3:
            self.user(d, self.style(f"my {words} is {value}"))
            self.facts[words] = value
            self.reply(d, "memory", f"Got it, your {words} is {value}.")
            self.user(d, r.choice([head, self.ask_style(f"{plain.rstrip('?')} for my {words}"), self.ask_style(f"{plain.rstrip('?')} with my {words}")]))
            return self.calls(d, "told", [(tool.name, args)])
        self.user(d, head)
        self.reply(d, "ask", f"What is the {words}?")
        said = value if isinstance(value, str) else json.dumps(value)
        self.user(d, r.choice(["{v}", "it is {v}", "it's {v}", "{v} please", "the {w} is {v}", "{w} {v}", "{v}."]).format(v=said, w=words))
        self.calls(d, "ask", [(tool.name, args)])

    def tool(self) -> Tool:
        r = self.rng
        return known_tool(self.lex) if r.random() < 0.45 else invented_tool(self.lex)

    def tool_set(self, kind: str) -> list[Tool]:
        """1 to 6 tools with different names; some differ in their verb or noun alone."""
        r = self.rng
        draw = {"known": lambda: known_tool(self.lex, base_names=True), "held out": lambda: held_out_tool(self.lex)}
        make = draw.get(kind, lambda: invented_tool(self.lex) if kind == "invented" else self.tool())
        tools: list[Tool] = []
        for _ in range(r.choice([1, 1, 2, 2, 3, 3, 4, 4, 5, 6])):
            t = make()
            if tools and r.random() < 0.2 and kind not in ("known", "held out"):
                last = tools[-1].topic.split(" ")
                if len(last) == 2:
                    t = invented_tool(self.lex, **({"noun": last[1]} if r.random() < 0.5 else {"verb": last[0]}))
            if not any(t.confusable(u) for u in tools):
                tools.append(t)
        if kind == "held out" and r.random() < 0.5:
            tools += [t for t in [invented_tool(self.lex)] if not any(t.confusable(u) for u in tools)]
        r.shuffle(tools)
        return tools

    # --- whole dialogues ------------------------------------------------------------------------------------------

    def dialogue(self, turns: int | None = None) -> Dialogue:
        """A training dialogue: any skills in any order."""
        r = self.rng
        tools = self.tool_set(r.choice(["known", "invented", "invented", "mixed", "mixed"])) if r.random() < 0.72 else []
        d = self.start(tools)
        for _ in range(turns or r.choice([1, 2, 2, 3, 3, 4, 4, 5, 6, 7] * 3 + [12, 20])):
            roll = r.random()
            if tools and roll < 0.58:
                self.use_tool(d, tools, "tool")
            elif roll < (0.66 if tools else 0.2):
                self.unknown(d)
            elif roll < (0.76 if tools else 0.45):
                self.tell(d)
            elif roll < (0.91 if tools else 0.82):
                self.recall(d)
            elif roll < 0.96:
                self.chat(d)
            elif roll < 0.975:
                self.statement(d)
            elif roll < 0.988:
                self.list_tools(d)
            elif len(self.facts) < 4:
                self.recall_all(d)
        return d if d.turns else self.dialogue(turns)
