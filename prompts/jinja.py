"""Chat templates on plain jinja, in a sandbox: for engines that have no transformers tokenizer."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kani_lite.exceptions import MissingModelDependencies, PromptError

if TYPE_CHECKING:
    from jinja2 import Environment, Template

MOST_STEPS = 2_000_000
"""Turns of loops and runs of macros that one rendering may take."""

LARGEST = 1_000_000
"""Items of a text or a list, or bits of a number, that a template may make by one multiplication."""

_running = threading.local()


class JinjaChatTemplate:
    """A chat template without a tokenizer. It has as much of a tokenizer's interface as ChatTemplatePromptPipeline
    needs, and renders what transformers renders, byte for byte.

    `source` is the template's text; `bos_token`, `eos_token` and further `special_tokens` are its variables. The
    template runs in jinja's sandbox: it sees only what is given to it, can change none of it, and is stopped after
    MOST_STEPS steps (how much memory it takes is not limited).

    Raises MissingModelDependencies without jinja2, PromptError if the text is no template.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "", **special_tokens: str) -> None:
        self.chat_template = source
        self.name_or_path = type(self).__name__
        self.special_tokens_map = {"bos_token": bos_token, "eos_token": eos_token, **special_tokens}
        _compiled(source)

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt as text; `kwargs` are further variables of the template.

        Raises PromptError if the template takes too many steps, and whatever it raises itself: jinja's TemplateError
        where it refuses the messages.
        """
        return self.apply_chat_template(messages, tools, add_generation_prompt=add_generation_prompt, **kwargs)

    def apply_chat_template(
        self,
        conversation: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        **kwargs: Any,
    ) -> str:
        """The same under the name that a tokenizer gives it. There are no tokens here: `tokenize` must be false."""
        if tokenize:
            raise ValueError("tokenize=True: a JinjaChatTemplate makes text; encode it with the engine's tokenizer.")
        template = _compiled(chat_template or self.chat_template)
        _running.left = MOST_STEPS
        return template.render(
            messages=list(conversation),
            tools=list(tools) if tools is not None else None,
            documents=kwargs.pop("documents", None),  # transformers always sets it
            add_generation_prompt=add_generation_prompt,
            **(self.special_tokens_map | kwargs),
        )


@lru_cache(maxsize=64)
def _compiled(source: str) -> Template:
    environment = chat_environment()
    from jinja2 import TemplateSyntaxError

    try:
        return environment.from_string(source)
    except TemplateSyntaxError as e:
        raise PromptError(f"This is no chat template; its line {e.lineno} can't be read: {e.message}") from e


def require_jinja() -> None:
    """Raises MissingModelDependencies if jinja2 isn't there."""
    try:
        import jinja2  # noqa: F401
    except ImportError as e:
        raise MissingModelDependencies(
            "Chat templates need jinja2: pip install 'kani-lite[jinja]' (it also comes with kani-lite[huggingface])."
        ) from e


@lru_cache(maxsize=1)
def chat_environment() -> Environment:
    """The sandbox that all templates share, with the settings, filters and functions that transformers gives them."""
    require_jinja()
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.runtime import Context
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """`{% generation %}` marks what the model is trained on: here it is only a block."""

        tags = {"generation"}  # noqa: RUF012  # jinja's own declaration

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
            # jinja has no limit on steps: each turn of a loop and each run of a macro counts itself
            counted: list[nodes.For | nodes.Macro] = [*source.find_all(nodes.For), *source.find_all(nodes.Macro)]
            for node in counted:
                step = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
                node.body.insert(0, nodes.ExprStmt(step).set_lineno(node.lineno))
            return super()._generate(source, *args, **kwargs)

        def step(self) -> None:
            _running.left -= 1
            if _running.left < 0:
                raise PromptError(f"The chat template took more than {MOST_STEPS:,} steps, and was stopped.")

        def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
            if _too_large(operator, left, right):
                raise SecurityError(f"{operator} would make a value of more than {LARGEST:,} items or bits here.")
            return super().call_binop(context, operator, left, right)

    class SafeNamespace(Namespace):
        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"A chat template may not set {name!r} on a namespace.")
            super().__setitem__(name, value)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=raise_exception, strftime_now=_strftime_now, dict=_new_dict, namespace=SafeNamespace
    )
    return environment


def _too_large(operator: str, left: Any, right: Any) -> bool:
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        return bits > LARGEST
    for many, times in ((left, right), (right, left)):
        if isinstance(many, str | list | tuple) and isinstance(times, int) and len(many) * times > LARGEST:
            return True
    return False


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own escapes HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    # the class itself would let a template change its arguments: dict.update(messages[0], ...)
    return dict(*args, **kwargs)
