"""Any engine from one line: `hf:Qwen/Qwen3-0.6B?quantize=4bit`, for the terminal, servers and configuration files."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import pydantic

from kani_lite.exceptions import EngineError, MissingModelDependencies

from .base import BaseEngine
from .options import check_names, read_options

GROUP = "kani_lite.engines"
"""Other packages' entry points for engines: the name is the scheme, the value a class or a function that makes one. It
is called with what stands after the colon, if anything does, and with the options."""

_HUGGINGFACE = ("torch", "transformers", "accelerate", "jinja2", "psutil")
_DISTRIBUTIONS = {"llama_cpp": "llama-cpp-python"}  # where the name isn't that of the package
_SCHEME = re.compile(r"([A-Za-z][\w.+-]+):(?!//)")

Target = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class EngineInfo:
    """An engine that a line can name. `packages`: what must be importable, of the extra `extra`. `origin`: the package
    that adds it, if that isn't this one. `example`: a line for it."""

    scheme: str
    text: str
    example: str
    packages: tuple[str, ...] = ()
    extra: str | None = None
    origin: str | None = None
    load: Callable[[], Any] = field(repr=False, compare=False, default=lambda: None)
    target: Callable[[str], Target] = field(
        repr=False, compare=False, default=lambda text: ((text,) if text else (), {})
    )

    @property
    def missing(self) -> tuple[str, ...]:
        """The packages that aren't installed. None is imported."""
        return tuple(name for name in self.packages if find_spec(name) is None)

    @property
    def install(self) -> str | None:
        """The command that installs what is missing."""
        return f"pip install 'kani-lite[{self.extra}]'" if self.missing and self.extra else None

    @property
    def versions(self) -> dict[str, str]:
        """The installed versions of its packages, where they say one."""
        found = {}
        for name in self.packages:
            try:
                found[name] = metadata.version(_DISTRIBUTIONS.get(name, name.replace("_", "-")))
            except metadata.PackageNotFoundError:
                continue
        return found


@dataclass(frozen=True)
class EngineLine:
    """A line, read. `options`: the values of each name after the question mark."""

    engine: EngineInfo
    target: str
    options: Mapping[str, Sequence[str]]


def engine_from(line: str, /, **options: Any) -> BaseEngine:
    """The engine that a line names, ready to use; `options` go to its constructor as they are, over those of the line.

    A line is `SCHEME:TARGET?NAME=VALUE&NAME=VALUE`. Without a scheme, an http address is an OpenAI-compatible server, a
    .gguf file is run by llama.cpp, and a folder or a hub name by transformers. `engine_schemes()` lists the schemes.
    Values are read as the constructor's parameter of that name is annotated: numbers, true and false, none, JSON for
    dicts and lists; & and + in them are written %26 and %2B, and a question mark in a path %3F.

    Raises EngineError for a scheme, a name or a value that there isn't, MissingModelDependencies for a package that
    isn't installed, and what the constructor raises.
    """
    read = parse_line(line)
    check_installed(read.engine)
    args, kwargs = read.engine.target(read.target)
    make = read.engine.load()
    given = read_options(make, {name: texts for name, texts in read.options.items() if name not in options})
    if twice := sorted(kwargs.keys() & given.keys()):
        raise EngineError(f"{line!r} gives {twice[0]} twice: {kwargs[twice[0]]!r} and {given[twice[0]]!r}.")
    check_names(make, options)
    try:
        engine = make(*args, **{**kwargs, **given, **options})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise EngineError(f"{line!r}: {name}={first['input']!r} is no good: {first['msg']}.") from error
    if not isinstance(engine, BaseEngine):
        raise EngineError(f"{read.engine.scheme!r} of {read.engine.origin} made {type(engine).__name__}, no engine.")
    return engine


def check_installed(engine: EngineInfo) -> None:
    """Raises MissingModelDependencies, without importing anything, if a package that the engine needs is missing."""
    if missing := engine.missing:
        raise MissingModelDependencies(
            f"The engine {engine.scheme!r} needs the package {missing[0]!r}, which isn't installed: {engine.install}"
        )


def parse_line(line: str, /) -> EngineLine:
    """What a line says, without importing an engine. Raises EngineError if it names none."""
    text, _, query = line.strip().partition("?")
    if not text:
        raise EngineError("The line is empty: name an engine, as in 'hf:Qwen/Qwen3-0.6B', a model or a folder.")
    schemes = {engine.scheme.lower(): engine for engine in engine_schemes()}
    name, target = _named(text, schemes)
    options: dict[str, list[str]] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        options.setdefault(key, []).append(value)
    return EngineLine(schemes[name], target, options)


def _named(text: str, schemes: Mapping[str, EngineInfo]) -> tuple[str, str]:
    """(the scheme, what it is about) of a line without its options."""
    if text.startswith(("http://", "https://")):
        return "openai", text
    found = _SCHEME.match(text)
    if found is not None and found[1].lower() in schemes:
        return found[1].lower(), text[found.end() :]
    if found is not None and not _exists(text):
        near = get_close_matches(found[1].lower(), schemes, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(schemes)}."
        raise EngineError(f"There is no engine {found[1]!r}: {hint}")
    if text == "nano" and not _exists(text):
        return "nano", ""
    return ("llamacpp" if text.lower().endswith(".gguf") else "hf"), text


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except OSError:  # a text that no file can be called
        return False


def _path(text: str) -> str:
    """A path as it is, or with %3F for a question mark in it; what is none stays."""
    return next((str(Path(one).expanduser()) for one in (text, unquote(text)) if _exists(one)), text)


# ==== the engines ====


def engine_schemes() -> list[EngineInfo]:
    """All engines that a line can name: ours, and those that installed packages add. None is imported."""
    ours = {engine.scheme: engine for engine in _OURS}
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        origin = point.dist.name if point.dist is not None else point.value
        if not _SCHEME.fullmatch(f"{point.name}:"):
            text = f"The engine {point.name!r} of {origin} is left out: a name has two letters or more, and no spaces."
            warnings.warn(text, UserWarning, stacklevel=2)
            continue
        if point.name.lower() in ours:
            text = (
                f"The engine {point.name!r} of {origin} is left out: "
                f"{ours[point.name.lower()].origin or 'kani-lite'} has one."
            )
            warnings.warn(text, UserWarning, stacklevel=2)
            continue
        text, example = f"from the package {origin}", f"{point.name}:MODEL"
        load = partial(_load_point, point)
        ours[point.name.lower()] = EngineInfo(point.name, text, example, origin=origin, load=load)
    return list(ours.values())


def _load_point(point: metadata.EntryPoint) -> Any:
    try:
        make = point.load()
    except Exception as error:  # a module that is imported may raise anything
        raise EngineError(f"The engine {point.name!r} ({point.value}) can't be imported: {error}") from error
    if not callable(make):
        raise EngineError(f"The engine {point.name!r} ({point.value}) is {make!r}: it should be a class or a function.")
    return make


def _ours(module: str, name: str) -> Any:
    return getattr(import_module(f"kani_lite.engines.{module}"), name)


def _no_target(text: str) -> Target:
    if text:
        raise EngineError(f"nano is the embedded model, and takes no name: leave {text!r} out.")
    return (), {}


def _model(text: str) -> Target:
    if not text:
        raise EngineError("The line names no model: give a folder, or a name on the hub, after the colon.")
    return (_path(text),), {}


def _gguf(text: str) -> Target:
    path = Path(_path(text)).expanduser()
    parts = text.split("/")
    if path.is_file() or not text or text.startswith((".", "~", os.sep)) or path.is_absolute() or len(parts) < 2:
        if not path.is_file():
            raise EngineError(f"There is no file {text!r}: give a .gguf file, or OWNER/NAME/FILE.gguf of the hub.")
        return (), {"model_path": str(path)}
    found = {"repo_id": "/".join(parts[:2])}
    return (), found | ({"filename": "/".join(parts[2:])} if len(parts) > 2 else {})


def _server(text: str) -> Target:
    if not text.startswith(("http://", "https://")):
        return (), {"model": text} if text else {}
    scheme, _, rest = text.partition("://")
    host, _, path = rest.partition("/")
    return (), {"api_base": f"{scheme}://{host}/{path or 'v1'}"}


def _info(
    scheme: str, text: str, example: str, packages: tuple[str, ...], where: str, target: Callable[[str], Target]
) -> EngineInfo:
    module, _, name = where.partition(":")
    extra = "huggingface" if packages is _HUGGINGFACE else scheme
    return EngineInfo(scheme, text, example, packages, extra, None, partial(_ours, module, name), target)


_HF_EXAMPLE = "hf:Qwen/Qwen3-0.6B?quantize=4bit"
_OURS = (
    _info("nano", "the embedded model", "nano", _HUGGINGFACE, "nano:NanoEngine", _no_target),
    _info("hf", "any causal model of transformers", _HF_EXAMPLE, _HUGGINGFACE, "huggingface:HuggingEngine", _model),
    _info(
        "hqq",
        "the same, quantised by HQQ",
        "hqq:Qwen/Qwen3-0.6B?backend=pytorch",
        (*_HUGGINGFACE, "hqq"),
        "hqq:HqqEngine",
        _model,
    ),
    _info(
        "vllm",
        "vLLM in this process",
        "vllm:Qwen/Qwen3-0.6B?dtype=bfloat16",
        ("vllm", "transformers"),
        "vllm:VLLMEngine",
        _model,
    ),
    _info(
        "vllm-server",
        "a server of vLLM, managed or running",
        "vllm-server:Qwen/Qwen3-0.6B?address=http://gpu-box:8000",
        ("httpx2", "transformers"),
        "vllm:VLLMServerEngine",
        _model,
    ),
    _info("llamacpp", "a GGUF file", "llamacpp:./model-q4_0.gguf", ("llama_cpp",), "llamacpp:LlamaCppEngine", _gguf),
    _info(
        "onnx",
        "a folder in ONNX format",
        "onnx:./model-onnx",
        ("onnxruntime_genai", "tokenizers", "jinja2"),
        "onnx:OnnxEngine",
        _model,
    ),
    _info(
        "openai", "an OpenAI-compatible server", "http://localhost:8000/v1", ("openai",), "openai:OpenAIEngine", _server
    ),
)


# ==== options, read by the constructor's signature ====
