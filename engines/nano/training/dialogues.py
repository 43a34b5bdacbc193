"""Dialogues for training and evaluation: a tool set, a system prompt or none, and several exchanges of various skills.

Every assistant message is a deterministic function of what came before it, so that answers can be compared exactly.
"""

from __future__ import annotations

from .exchange import Dialogue, Message
from .invented import invented_tool
from .talk import ROWS, join
from .tool_use import ToolUse
from .tools import Tool, held_out_tool, known_tool

__all__ = ["Dialogue", "Message", "Writer"]

NO_TOOL = "Sorry, I have no tool for that."
SEE = "I see. How can I help you?"


class Writer(ToolUse):
    """Writes one dialogue at a time, from a seed."""

    def chat(self, d: Dialogue) -> None:
        train, held, answer = self.rng.choice(ROWS)
        self.user(d, self.style(self.rng.choice(held if self.evaluation else train)))
        self.reply(d, "chat", answer)

    def statement(self, d: Dialogue) -> None:
        self.user(d, self.style(self.lex.pick("statement")))
        self.reply(d, "chat", SEE)

    def unknown(self, d: Dialogue) -> None:
        """A question or a request that no tool on offer serves."""
        if self.rng.random() < 0.35 and not any("search" in t.words for t in self.offered):
            text = self.lex.pick("question")
            verb = ""
        else:
            tool = self.tool()
            while any(tool.confusable(t) for t in self.offered):
                tool = self.tool()
            assert tool.ask is not None
            text, verb = tool.ask(self.lex)[0], tool.topic.split(" ")[0]
        self.user(d, self.ask_style(text, verb))
        self.reply(d, "no tool", NO_TOOL)

    def list_tools(self, d: Dialogue) -> None:
        self.user(d, self.style(self.lex.form("list tools")))
        names = [t["function"]["name"] for t in d.tools or []]
        if names:
            self.reply(
                d, "list tools", ("My tools are " if len(names) > 1 else "My tool is ") + join(names, capital=False)
            )
        else:
            self.reply(d, "list tools", "I have no tools.")

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
            if tools and r.random() < 0.3 and kind not in ("known", "held out"):
                last = tools[-1].topic.split(" ")
                if len(last) == 2:
                    t = invented_tool(self.lex, **({"noun": last[1]} if r.random() < 0.5 else {"verb": last[0]}))
            if not any(t.confusable(u) for u in tools):
                tools.append(t)
        if kind == "held out" and r.random() < 0.5:
            tools += [t for t in [invented_tool(self.lex)] if not any(t.confusable(u) for u in tools)]
        r.shuffle(tools)
        return tools

    def dialogue(self, turns: int | None = None) -> Dialogue:
        """A training dialogue: any skills in any order."""
        r = self.rng
        tools = (
            self.tool_set(r.choice(["known", "invented", "invented", "mixed", "mixed"])) if r.random() < 0.85 else []
        )
        d = self.start(tools)
        for _ in range(turns or r.choice([1, 2, 2, 3, 3, 4, 4, 5, 6, 7] * 3 + [12, 20])):
            roll = r.random()
            if tools and roll < 0.68:
                self.use_tool(d, tools, "tool")
            elif roll < (0.75 if tools else 0.2):
                self.unknown(d)
            elif roll < (0.83 if tools else 0.45):
                self.tell(d)
            elif roll < (0.92 if tools else 0.82):
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
