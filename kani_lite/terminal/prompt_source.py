"""Where `kani-lite prompt` gets a prompt from: a model's tokenizer and chat template, a named format, a template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kani_lite.exceptions import EngineError, MissingModelDependencies, PromptError
from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage

from .loading import ModelChoice, check_model
from .prompt_count import token_counter

EMBEDDED = "nano"
_ENDS = {
    "alpaca": ("<s>", "</s>"),
    "gemma": ("<bos>", "<eos>"),
    "llama2": ("<s>", "</s>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "mistral": ("<s>", "</s>"),
    "phi3": ("<s>", "<|endoftext|>"),
    "vicuna": ("<s>", "</s>"),
    "zephyr": ("<s>", "</s>"),
}  # the tokens that begin and end a text, which a named format leaves to the tokenizer


class Render(Protocol):
    """Writes messages and functions as a prompt. Raises PromptError where that can't be done."""

    def __call__(
        self, messages: Sequence[ChatMessage], functions: Sequence[AIFunction], add_generation_prompt: bool, /
    ) -> str: ...


@dataclass(frozen=True)
class PromptSource:
    """`count` counts `unit`s of a prompt's text: "tokens", or "characters" where there is no tokenizer."""

    render: Render
    count: Callable[[str], int]
    unit: str


def find_source(name: str) -> PromptSource:
    """The source that the user named: `nano`, a named format, a path that ends in .jinja, a folder or a hub model.

    Only a tokenizer is loaded, never weights. Raises EngineError if there is no such thing or it has no chat template,
    PromptError if the .jinja file can't be read, or the name is that of a format without a template.
    """
    from kani_lite.prompts.formats import FORMATS
    from kani_lite.prompts.templates import named_template, template_names

    if name.endswith(".jinja"):
        return _template_source(Path(name).expanduser())
    if name in template_names():
        return _template_source(named_template(name), *_ENDS.get(name, ("", "")))
    if name in FORMATS and not Path(name).is_dir():  # else it would be looked for on the hub
        raise PromptError(
            f"{name!r} says how replies are read, and no template belongs to it: name a model, a .jinja file, or a "
            f"format that has a template: {', '.join(template_names())}."
        )
    try:
        return _model_source(name)
    except MissingModelDependencies:
        raise
    except EngineError as error:
        if set(name) & set("/\\."):
            raise
        raise EngineError(f"{error} Nor is it a named format: {', '.join(template_names())}.") from error


def _template_source(template: str | Path, bos_token: str = "", eos_token: str = "") -> PromptSource:
    from kani_lite.prompts.chat_template import ChatTemplatePromptPipeline
    from kani_lite.prompts.jinja import JinjaChatTemplate
    from kani_lite.prompts.templates import find_template

    renderer = JinjaChatTemplate(find_template(template), bos_token=bos_token, eos_token=eos_token)
    return PromptSource(ChatTemplatePromptPipeline(renderer), len, "characters")


def _model_source(name: str) -> PromptSource:
    from kani_lite.prompts.chat_template import ChatTemplatePromptPipeline

    tokenizer = _load_tokenizer(name)
    if not tokenizer.chat_template:
        raise EngineError(f"The tokenizer of {name!r} has no chat template: name a format, or a .jinja file.")

    return PromptSource(ChatTemplatePromptPipeline(tokenizer), token_counter(tokenizer), "tokens")


def _load_tokenizer(name: str) -> Any:
    if name == EMBEDDED:
        check_model(ModelChoice())
        from kani_lite.engines.nano import WEIGHTS

        return _tokenizer_on_disk(str(WEIGHTS), local=True)
    folder = Path(name).expanduser()
    if not (folder / "tokenizer_config.json").is_file():  # that is enough: no config and no weights are needed
        check_model(ModelChoice(name))
    if folder.is_dir():
        return _tokenizer_on_disk(str(folder), local=True)
    from kani_lite.engines.huggingface import hub, loading

    try:
        return _tokenizer_on_disk(name, local=False)
    except EngineError:  # it was not fetched before
        hub.check_hub(name, {})
    return loading.load_tokenizer(loading.Source(name, False, {}), None, {})


def _tokenizer_on_disk(name: str, *, local: bool) -> Any:
    from kani_lite.engines.huggingface import loading

    return loading.load_tokenizer(loading.Source(name, local, {"local_files_only": True}), None, {})
