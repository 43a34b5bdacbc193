"""From what the user named to an engine: quick checks first, then the slow part in a thread behind the prompt."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kani_lite.exceptions import EngineError, MissingModelDependencies

if TYPE_CHECKING:
    from kani_lite.engines.base import BaseEngine


@dataclass(frozen=True)
class ModelChoice:
    """The model that the user asked for: a folder, a hub name, or a line that names an engine (see
    `kani_lite.engines.registry`); `name` None is the embedded one."""

    name: str | None = None
    context: int | None = None
    quantize: str | None = None


def check_model(choice: ModelChoice) -> None:
    """What can be known to fail without importing torch. Raises EngineError, or its subclass for missing packages."""
    if choice.name is not None and names_engine(choice.name):
        from kani_lite.engines.registry import check_installed, parse_line

        check_installed(parse_line(choice.name).engine)
        return
    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            raise MissingModelDependencies(
                f"A model needs the package {package!r}, which isn't installed: pip install 'kani-lite[huggingface]'"
            )
    if choice.name is None:
        return
    if not choice.name.strip():
        raise EngineError("The MODEL is empty: name a folder, or a model on the hub, or leave it out.")
    path = Path(choice.name).expanduser()
    if path.is_dir():
        _check_folder(path)
    elif path.exists():
        raise EngineError(f"{choice.name} is a file: name the folder that holds the model, or a model on the hub.")
    elif choice.name.startswith((".", "~", os.sep)) or path.is_absolute():
        raise EngineError(f"There is no folder {choice.name}.")
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", choice.name):
        raise EngineError(
            f"{choice.name!r} is neither a folder nor a model's name on the hub, such as Qwen/Qwen3-0.6B."
        )


def names_engine(name: str) -> bool:
    """Whether this is a line that names an engine or gives it options, rather than a folder or a hub name alone."""
    if name.lower().endswith(".gguf"):
        return True
    return (":" in name or "?" in name) and not Path(name).expanduser().exists()


def _check_folder(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise EngineError(f"There is no model in {folder}: it has no config.json.")
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"{config} can't be read: {error}") from None
    if not isinstance(values, dict):
        raise EngineError(f"{config} is not a model's configuration: it holds no JSON object.")


def load_engine(choice: ModelChoice) -> BaseEngine:
    """The engine, ready to use. Takes seconds: torch is imported here."""
    _quiet_libraries()
    if choice.name is None:
        from kani_lite.engines import NanoEngine

        nano: BaseEngine = NanoEngine()
        return nano
    options: dict[str, Any] = {}
    if choice.context is not None:
        options["max_context_size"] = choice.context
    if choice.quantize is not None:
        options["quantize"] = choice.quantize
    if names_engine(choice.name):
        from kani_lite.engines import engine_from

        return engine_from(choice.name, **options)
    from kani_lite.engines import HuggingEngine

    path = Path(choice.name).expanduser()
    engine: BaseEngine = HuggingEngine(str(path) if path.is_dir() else choice.name, **options)
    return engine


def _quiet_libraries() -> None:
    """No progress bars and notices over the prompt, unless the user has set them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from transformers.utils import logging
    except ImportError:
        return  # the engine says what is missing
    logging.disable_progress_bar()


class ModelLoader:
    """Loads an engine once, in a thread that the end of the program doesn't wait for."""

    def __init__(self, load: Callable[[], BaseEngine]) -> None:
        self._load = load
        self._future: Future[BaseEngine] = Future()
        self._started = False

    def start(self) -> None:
        """Begins to load; does nothing if it has begun."""
        if self._started:
            return
        self._started = True
        # running at once: who stops waiting for the engine must not cancel it
        self._future.set_running_or_notify_cancel()
        threading.Thread(target=self._run, name="kani_lite loader", daemon=True).start()

    @property
    def busy(self) -> bool:
        """Whether it has begun and not ended."""
        return self._started and not self._future.done()

    @property
    def error(self) -> BaseException | None:
        """Why loading failed, if it did."""
        return self._future.exception() if self._future.done() else None

    def on_failure(self, callback: Callable[[], object]) -> None:
        """Calls back, in the loader's thread, if loading fails."""
        self._future.add_done_callback(lambda future: callback() if future.exception() is not None else None)

    def load_here(self) -> BaseEngine:
        """The engine, loaded in this thread."""
        return self._load()

    async def engine(self) -> BaseEngine:
        """The engine, as soon as it is loaded. Raises what loading raised. Needs asyncio."""
        self.start()
        return await asyncio.wrap_future(self._future)

    def engine_if_ready(self) -> BaseEngine | None:
        """The engine if it is loaded."""
        return self._future.result() if self._future.done() and self._future.exception() is None else None

    def _run(self) -> None:
        try:
            engine = self._load()
        except BaseException as e:
            self._future.set_exception(e)
        else:
            self._future.set_result(engine)
