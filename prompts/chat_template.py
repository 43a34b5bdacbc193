"""Prompts by a chat template: that of a tokenizer, one of ours, or any other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any, Self

from kani_lite.exceptions import EngineError, MissingModelDependencies, PromptError
from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage, ChatRole, ReasoningPart

from .adapt import Can, adapted
from .jinja import require_jinja
from .pipeline import PromptPipeline
from .probing import Capabilities, Message
from .steps_base import PipelineStep, are_messages
from .templates import find_template, template_names

_ROLES = {
    ChatRole.SYSTEM: "system",
    ChatRole.USER: "user",
    ChatRole.ASSISTANT: "assistant",
    ChatRole.FUNCTION: "tool",
}


def tool_schema(function: AIFunction) -> dict[str, Any]:
    """A function in the OpenAI format, which chat templates take."""
    spec = {"name": function.name, "description": function.desc, "parameters": function.json_schema}
    return {"type": "function", "function": spec}


def hf_content_transform(message: ChatMessage) -> str:
    """A message's content as chat templates take it: its text, which is empty if there is none."""
    return message.text or ""


def hf_tool_use_keys(message: ChatMessage) -> dict[str, Any]:
    """The keys for a message's calls (arguments decoded; as the model wrote them if they are broken), or those of a
    function's result."""
    keys = _tool_keys(message)
    for call in keys.get("tool_calls", ()):
        try:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        except ValueError:
            continue  # broken JSON is shown to the model as it wrote it
    return keys


def _tool_keys(message: ChatMessage) -> dict[str, Any]:
    if message.role is ChatRole.ASSISTANT and message.tool_calls:
        calls = [
            {
                "id": call.id,
                "type": call.type,
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in message.tool_calls
        ]
        return {"tool_calls": calls}
    if message.role is ChatRole.FUNCTION:
        given = {"name": message.name, "tool_call_id": message.tool_call_id}
        return {key: value for key, value in given.items() if value is not None}
    return {}


def hf_reasoning_keys(message: ChatMessage, *, reasoning_key: str | None) -> dict[str, str]:
    """The key for a message's reasoning, if it has any and the key is known."""
    reasoning = "".join(part.content for part in message.parts if isinstance(part, ReasoningPart))
    return {reasoning_key: reasoning} if reasoning and reasoning_key else {}


def hf_additional_keys(message: ChatMessage, *, reasoning_key: str | None) -> dict[str, Any]:
    """All keys of a message beside its role and content."""
    return hf_tool_use_keys(message) | hf_reasoning_keys(message, reasoning_key=reasoning_key)


def message_dict(message: ChatMessage) -> Message:
    """A message as the dict that chat templates take, the arguments of its calls as JSON text."""
    content = hf_content_transform(message)
    reasoning = hf_reasoning_keys(message, reasoning_key="reasoning_content")
    return {"role": _ROLES[message.role], "content": content} | reasoning | _tool_keys(message)


class ChatTemplatePromptPipeline(PromptPipeline[str]):
    """A prompt pipeline that ends with a chat template: after its steps, the template writes the messages.

    `tokenizer` is one of transformers, or a JinjaChatTemplate. Its template is used, unless `chat_template` gives
    another: the name of one of ours ("llama2", "chatml", ...) or of several that the tokenizer has, the path of a
    .jinja file, or a template's text. The tokenizer itself is never changed. `chat_template_kwargs` go to the template.

    Templates differ in what they take. Calls, ids, reasoning and content get the form that the template wants, and
    what it would refuse or leave out reaches the model by the least change that works (see prompts/adapt.py); a chat
    that the template takes reaches it as it is. Reasoning goes under the key that the template reads, or
    `chat_template_reasoning_content_key`. With a `conversation_dict` step, its dicts go to the template as they are.

    Raises EngineError if there is no template, PromptError for an unknown name, MissingModelDependencies without
    jinja2. Running it raises PromptError where the template refuses the messages in every form.
    """

    def __init__(
        self,
        tokenizer: Any,
        steps: Iterable[PipelineStep] | None = None,
        *,
        chat_template: str | PathLike[str] | None = None,
        chat_template_reasoning_content_key: str | None = None,
        **chat_template_kwargs: Any,
    ) -> None:
        super().__init__(steps or ())
        require_jinja()
        self.tokenizer = tokenizer
        self.chat_template_reasoning_content_key = chat_template_reasoning_content_key
        self.chat_template_kwargs = chat_template_kwargs
        self._template = self._find(chat_template)
        self._capabilities: dict[str, Capabilities] = {}

    def _find(self, chat_template: str | PathLike[str] | None) -> str | None:
        own: Any = getattr(self.tokenizer, "chat_template", None)
        if chat_template is not None:
            named = own.get(chat_template) if isinstance(own, dict) else None
            return named or find_template(chat_template)
        if not own:
            raise EngineError(
                f"The tokenizer of {self.tokenizer.name_or_path!r} has no chat template: pass "
                "chat_template_kwargs={'chat_template': ...} with a template, the path of one or one of the names "
                f"{', '.join(template_names())}; or subclass the engine and override build_prompt."
            )
        return None

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> Self:
        """The pipeline with the tokenizer of a model, for another engine. Raises MissingModelDependencies without
        transformers."""
        try:
            from transformers import AutoTokenizer
        except ImportError as e:
            raise MissingModelDependencies(
                "A model's tokenizer needs transformers: pip install 'kani-lite[huggingface]'. A template alone works "
                "without: JinjaChatTemplate(source)."
            ) from e
        return cls(AutoTokenizer.from_pretrained(model_id), **kwargs)

    @property
    def chat_template(self) -> str:
        """The template's text; of several that a tokenizer has, the one for functions."""
        return self._text(with_tools=True)

    def _text(self, with_tools: bool) -> str:
        if self._template is not None:
            return self._template
        own = self.tokenizer.chat_template
        if isinstance(own, dict):  # transformers chooses by the same rule
            own = own["tool_use"] if with_tools and "tool_use" in own else own.get("default", "")
        return str(own)

    def capabilities(self, with_tools: bool = True) -> Capabilities:
        """What the template takes, found out when it is asked for."""
        text = self._text(with_tools)
        if text not in self._capabilities:
            key = self.chat_template_reasoning_content_key
            self._capabilities[text] = Capabilities(self._probe, text, key)
        return self._capabilities[text]

    def _probe(self, messages: list[Message], tools: list[dict[str, Any]] | None) -> str:
        return self._rendered(messages, tools, True)

    def __call__(
        self,
        msgs: Sequence[ChatMessage],
        functions: Sequence[AIFunction] | None = None,
        add_generation_prompt: bool = True,
        *,
        deepcopy: bool = False,
        for_measurement: bool = False,
    ) -> str:
        """The prompt of these messages: see `execute`."""
        return self.execute(
            msgs,
            functions,
            deepcopy=deepcopy,
            for_measurement=for_measurement,
            add_generation_prompt=add_generation_prompt,
        )

    def execute(
        self,
        msgs: Sequence[ChatMessage],
        functions: Sequence[AIFunction] | None = None,
        *,
        deepcopy: bool = False,
        for_measurement: bool = False,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt of these messages as text: with `add_generation_prompt`, up to where the model's reply begins."""
        given = list(msgs)
        if not self.steps and are_messages(given):  # nothing to copy them for
            return self._prompt(given, functions or (), add_generation_prompt)
        whole = self._with_template(add_generation_prompt)
        return whole.execute(msgs, functions, deepcopy=deepcopy, for_measurement=for_measurement)

    def explain(
        self,
        example: Sequence[ChatMessage] | None = None,
        functions: Sequence[AIFunction] | None = None,
        *,
        all_cases: bool = False,
        **kwargs: bool,
    ) -> None:
        """Prints what the steps and the template do: see PromptPipeline.explain."""
        self._with_template(True).explain(example, functions, all_cases=all_cases, **kwargs)

    def _with_template(self, add_generation_prompt: bool) -> PromptPipeline[str]:
        def write(made: Any, functions: Sequence[AIFunction]) -> str:
            return self._prompt(made, functions, add_generation_prompt)

        return PromptPipeline([*self.steps, ApplyChatTemplate(write)])

    def _prompt(self, made: Any, functions: Sequence[AIFunction], add_generation_prompt: bool) -> str:
        tools = [tool_schema(f) for f in functions] or None
        if isinstance(made, list) and made and not are_messages(made):
            return self._taken(made, tools, add_generation_prompt, made)
        if not are_messages(made):
            raise PromptError(f"A chat template takes messages, and the steps before it made a {type(made).__name__}.")
        messages = [message_dict(m) for m in made]
        template = self.capabilities(with_tools=tools is not None)
        try:
            return self._met(messages, tools, template, template.can, add_generation_prompt)
        except PromptError as first:
            try:
                return self._met(messages, tools, template, lambda ability: False, add_generation_prompt)
            except PromptError:
                raise first from first.__cause__  # it says more: of the messages as they were

    def _met(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None,
        template: Capabilities,
        can: Can,
        add_generation_prompt: bool,
    ) -> str:
        chat, shown = adapted(messages, tools, can)
        return self._taken(template.dressed(chat), shown, add_generation_prompt, messages)

    def _taken(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
        given: list[Message],
    ) -> str:
        try:
            return self._rendered(messages, tools, add_generation_prompt)
        except PromptError:
            raise
        except Exception as e:  # a template is a program: its refusal may be any error
            roles = ", ".join(str(m.get("role")) for m in given)
            raise PromptError(
                f"The chat template refuses these messages ({roles}): {str(e).rstrip('.')}. Give another template "
                "(chat_template=), or write the prompt with a PromptPipeline that ends with conversation_fmt."
            ) from e

    def _rendered(
        self, messages: list[Message], tools: list[dict[str, Any]] | None, add_generation_prompt: bool
    ) -> str:
        chosen = {"add_generation_prompt": add_generation_prompt} | self.chat_template_kwargs
        if self._template is not None:
            chosen["chat_template"] = self._template
        text: str = self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **chosen)
        return text


class ApplyChatTemplate(PipelineStep):
    """Writes the messages with a chat template."""

    def __init__(self, write: Callable[[Any, Sequence[AIFunction]], str]) -> None:
        self._write = write

    def execute(self, msgs: Any, functions: list[AIFunction]) -> str:
        return self._write(msgs, functions)

    def explain(self) -> str:
        return "Write all messages as one text with the chat template, the prompt."

    def explain_example_kwargs(self) -> dict[str, bool]:
        return {"function_call": True}
