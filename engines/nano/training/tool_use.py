"""The skill of using tools: one call, two calls, a call once more, and asking for what is missing."""

from __future__ import annotations

import json

from .exchange import Dialogue
from .memory import Memory
from .tools import Tool, Value


class ToolUse(Memory):
    """Requests that tools serve."""

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
        self.user(d, self.ask_style(text, tool.topic.split(" ")[0]))
        self.calls(d, skill, [(tool.name, args)])
        if len(args) == 1 and len(tool.params) == 1 and r.random() < 0.12:
            self._follow_up(d, tool, skill)

    def _follow_up(self, d: Dialogue, tool: Tool, skill: str) -> None:
        """The same again with another value, which is all that the user says."""
        assert tool.ask is not None
        value = next(iter(tool.ask(self.lex)[1].values()), None)
        if value is None or isinstance(value, bool):
            return
        said = value if isinstance(value, str) else json.dumps(value)
        self.user(d, self.style(self.lex.form("follow up").format(v=said)))
        self.calls(d, skill, [(tool.name, {tool.params[0].name: value})])

    def _two_calls(self, d: Dialogue, tools: list[Tool], skill: str) -> None:
        r = self.rng
        first, second = r.choice(tools), r.choice(tools)
        assert first.ask is not None
        assert second.ask is not None
        (a, x), (b, y) = first.ask(self.lex), second.ask(self.lex)
        self.user(d, self.style(self.lex.form("joiner").format(a=a.rstrip("?."), b=b)))
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
            self.user(
                d,
                r.choice(
                    [
                        head,
                        self.ask_style(f"{plain.rstrip('?')} for my {words}"),
                        self.ask_style(f"{plain.rstrip('?')} with my {words}"),
                    ]
                ),
            )
            return self.calls(d, "told", [(tool.name, args)])
        self.user(d, head)
        self.reply(d, "ask", f"What is the {words}?")
        said = value if isinstance(value, str) else json.dumps(value)
        self.user(
            d,
            r.choice(["{v}", "it is {v}", "it's {v}", "{v} please", "the {w} is {v}", "{w} {v}", "{v}."]).format(
                v=said, w=words
            ),
        )
        self.calls(d, "ask", [(tool.name, args)])
