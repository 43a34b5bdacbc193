from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import EntryPoint
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio.to_thread
import pytest
from openai_server import Script, serving

from kani_lite import ChatMessage
from kani_lite.engines import (
    BaseCompletion,
    BaseEngine,
    Completion,
    HuggingEngine,
    NanoEngine,
    SamplingParams,
    registry,
)
from kani_lite.engines.nano import WEIGHTS
from kani_lite.engines.options import read_options
from kani_lite.engines.registry import engine_from, engine_schemes, parse_line
from kani_lite.exceptions import EngineError, MissingModelDependencies

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]  # a name that only type checkers see


# ==== which engine ====


@pytest.mark.parametrize(
    ("line", "scheme", "target"),
    [
        ("hf:Qwen/Qwen3-0.6B", "hf", "Qwen/Qwen3-0.6B"),
        ("HF:Qwen/Qwen3-0.6B", "hf", "Qwen/Qwen3-0.6B"),
        ("Qwen/Qwen3-0.6B", "hf", "Qwen/Qwen3-0.6B"),
        (" ./my-model ", "hf", "./my-model"),
        ("nano", "nano", ""),
        ("nano:", "nano", ""),
        ("models/x.Q4_0.gguf", "llamacpp", "models/x.Q4_0.gguf"),
        ("llamacpp:owner/name/x.gguf", "llamacpp", "owner/name/x.gguf"),
        ("http://localhost:8000/v1", "openai", "http://localhost:8000/v1"),
        ("openai:https://host/api", "openai", "https://host/api"),
        ("openai:gpt-4o", "openai", "gpt-4o"),
        ("vllm-server:a/b", "vllm-server", "a/b"),
    ],
)
def test_a_line_names_an_engine(line: str, scheme: str, target: str) -> None:
    read = parse_line(line)
    assert (read.engine.scheme, read.target, read.options) == (scheme, target, {})


def test_options_of_a_line() -> None:
    read = parse_line('hf:a/b?quantize=4bit&stop=x&stop=y%26&model_load_kwargs={"a": 1}&token=')
    assert read.options == {
        "quantize": ["4bit"],
        "stop": ["x", "y&"],
        "model_load_kwargs": ['{"a": 1}'],
        "token": [""],
    }


def test_a_folder_whose_name_looks_like_a_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama3:8b").mkdir()
    (tmp_path / "nano").mkdir()
    assert (parse_line("llama3:8b").engine.scheme, parse_line("nano").engine.scheme) == ("hf", "hf")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("", "line is empty"),
        ("?a=1", "line is empty"),
        ("vlm:a/b", "There is no engine 'vlm': did you mean 'vllm'"),
        ("zzzzzz:a/b", "there are nano, hf, hqq, vllm"),
        ("hf:", "names no model"),
        ("nano:big", "leave 'big' out"),
        ("llamacpp:./no-such.gguf", "There is no file './no-such.gguf'"),
        ("hf:a/b?quantise=4bit", "HuggingEngine has no option 'quantise': did you mean quantize"),
        ("hf:a/b?max_context_size=many", "max_context_size='many' can't be read as none or int"),
        ("hf:a/b?max_context_size=1&max_context_size=2", "max_context_size is given 2 times"),
        ("hf:a/b?model_load_kwargs=x", "model_load_kwargs='x' can't be read"),
        ("hf:a/b?temperature=-1", "temperature='?-1.0'? is no good"),
        ("hf:a/b?model_id=c/d", "model_id"),
        ("hf:a/b?prompt_pipeline=f", "prompt_pipeline='f' can't be read"),
    ],
)
def test_what_is_wrong_with_a_line(line: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: object())  # this is not about packages
    with pytest.raises((EngineError, TypeError), match=text):
        engine_from(line)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "hqq" else object())
    with pytest.raises(
        MissingModelDependencies, match=r"'hqq' needs the package 'hqq'.*pip install 'kani-lite\[hqq\]'"
    ):
        engine_from("hqq:a/b")


# ==== built ====


async def test_engines_that_are_built() -> None:
    nano = await anyio.to_thread.run_sync(engine_from, "nano?max_context_size=300&temperature=0&max_tokens=8&stop=zzz")
    assert isinstance(nano, NanoEngine)
    assert nano.max_context_size == 300
    assert nano.sampling == SamplingParams(temperature=0, max_tokens=8, stop=["zzz"])
    assert (await nano.predict([ChatMessage.user("Hello")])).completion_tokens in range(1, 9)
    await nano.close()

    line = f'{WEIGHTS}?model_load_kwargs={{"dtype": "float32"}}&max_context_size=100'
    folder = await anyio.to_thread.run_sync(partial(engine_from, line, max_context_size=200))
    assert isinstance(folder, HuggingEngine)
    assert folder.max_context_size == 200
    await folder.close()


def test_a_servers_address() -> None:
    pytest.importorskip("openai")
    from kani_lite.engines.openai import OpenAIEngine

    with serving(Script(models=[{"id": "m", "max_model_len": 64}])) as script:
        for line in (script.url, script.url.removesuffix("/v1"), script.url + "/?temperature=0.5&reasoning_effort=low"):
            engine = engine_from(line)
            assert isinstance(engine, OpenAIEngine)
            assert (engine.model, engine.max_context_size) == ("m", 64)
        assert engine.hyperparams == {"temperature": 0.5, "reasoning_effort": "low"}
        named = engine_from(f"openai:other?api_base={script.url}&max_context_size=9&api_key=k&retry=0")
        assert isinstance(named, OpenAIEngine)
        assert (named.model, named.max_context_size) == ("other", 9)
        with pytest.raises(EngineError, match="did you mean temperature"):
            engine_from(script.url + "?temprature=1")
        with pytest.raises(EngineError, match="gives api_base twice"):
            engine_from(script.url + "?api_base=http://x")


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        ("owner/name", {"repo_id": "owner/name"}),
        ("owner/name/sub/x.gguf", {"repo_id": "owner/name", "filename": "sub/x.gguf"}),
    ],
)
def test_gguf_files_of_the_hub(target: str, arguments: dict[str, str]) -> None:
    assert parse_line(f"llamacpp:{target}").engine.target(target) == ((), arguments)


def test_gguf_files_on_this_disk(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.touch()
    read = parse_line(str(file))
    assert read.engine.scheme == "llamacpp"
    assert read.engine.target(read.target) == ((), {"model_path": str(file)})


# ==== values by annotations ====


class Colour(enum.Enum):
    RED = "red"


class Base(BaseEngine):
    max_context_size = 100

    def __init__(self, size: int = 1, *, ratio: float | None = None, **hyperparams: Any) -> None:
        self.values = {"size": size, "ratio": ratio, **hyperparams}

    def message_len(self, message: ChatMessage) -> int:
        return 1

    async def predict(self, messages: Any, functions: Any = None, **hyperparams: Any) -> BaseCompletion:
        return Completion(ChatMessage.assistant("hi"))


class Derived(Base):
    def __init__(
        self,
        *args: Any,
        flag: bool = False,
        token: str | bool | None = None,
        path: str | PathLike[str] | None = None,
        table: Mapping[str, Any] | None = None,
        names: Sequence[str] = (),
        colour: Colour | None = None,
        mode: Literal["fast", "slow"] = "fast",
        noted: Annotated[int, "a note"] = 0,
        sampling: SamplingParams | None = None,
        anything: Any = None,
        hidden: Unknown = None,
        bare=None,  # type: ignore[no-untyped-def]  # other people's classes may have no annotations
        hook: Callable[[], None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("size", "7", 7),
        ("ratio", "0.5", 0.5),
        ("ratio", "none", None),
        ("flag", "yes", True),
        ("flag", "False", False),
        ("token", "hf_abc", "hf_abc"),
        ("token", "true", True),
        ("path", "/a/b", "/a/b"),
        ("table", '{"a": [1]}', {"a": [1]}),
        ("names", '["a", "b"]', ["a", "b"]),
        ("names", "a", ["a"]),
        ("colour", "red", Colour.RED),
        ("mode", "slow", "slow"),
        ("noted", "3", 3),
        ("sampling", '{"top_k": 5}', SamplingParams(top_k=5)),
        ("anything", "4bit", "4bit"),
        ("anything", "12", 12),
        ("anything", '{"a": 1}', {"a": 1}),
        ("hidden", "true", True),
        ("bare", "x", "x"),
        ("hook", "none", None),
        ("temperature", "0", 0.0),
        ("stop", "5", ["5"]),
        ("do_sample", "false", False),
    ],
)
def test_values_are_read_by_annotations(name: str, text: str, value: Any) -> None:
    (found,) = read_options(Derived, {name: [text]}).values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("size", "7.5", "can't be read as int"),
        ("flag", "2", "can't be read as bool"),
        ("mode", "medium", "can't be read as 'fast' or 'slow'"),
        ("colour", "blue", "can't be read as"),
        ("table", "[1]", "can't be read as"),
        ("names", "[1", "can't be read as"),
        ("hook", "print", "can't be read as"),
        ("sampling", '{"top_q": 5}', "can't be read as"),
        ("args", "1", "has no option 'args'"),
        ("self", "1", "has no option 'self'"),
        ("rato", "1", "did you mean ratio"),
    ],
)
def test_values_that_a_parameter_cannot_have(name: str, text: str, error: str) -> None:
    with pytest.raises(EngineError, match=error):
        read_options(Derived, {name: [text]})


def test_a_value_given_more_than_once_is_a_list() -> None:
    assert read_options(Derived, {"names": ["a", "b"], "stop": ["x", "y"]}) == {"names": ["a", "b"], "stop": ["x", "y"]}


# ==== other packages ====


def make_derived(model: str, size: int = 1) -> BaseEngine:
    return Derived(size, model=model)


def make_any(model: str, **options: Any) -> BaseEngine:
    engine = Derived()
    engine.values = {"model": model, **options}
    return engine


def make_nothing() -> str:
    return "nothing"


def _points(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    found = [EntryPoint(name.replace("_", "-"), value, registry.GROUP) for name, value in points.items()]
    monkeypatch.setattr(registry.metadata, "entry_points", lambda *, group: found if group == registry.GROUP else [])
    loaded = {
        "mine:make": make_derived,
        "mine:Derived": Derived,
        "mine:nothing": make_nothing,
        "mine:any": make_any,
        "mine:five": 5,
    }

    def load(self: EntryPoint) -> Any:
        if self.value == "bad:Engine":
            raise ValueError("not on this machine")
        if self.value not in loaded:
            raise ImportError(f"no module {self.value}")
        return loaded[self.value]

    monkeypatch.setattr(EntryPoint, "load", load)


def test_entry_points_add_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    _points(monkeypatch, mine="mine:make", my_class="mine:Derived", broken="gone:Engine", odd="mine:nothing")
    engine: Any = engine_from("mine:some/model?size=3")
    assert engine.values == {"size": 3, "ratio": None, "model": "some/model"}
    engine = engine_from("my-class:?size=4")
    assert engine.values["size"] == 4
    assert [scheme.origin for scheme in engine_schemes()][-4:] == [
        "gone:Engine",
        "mine:make",
        "mine:Derived",
        "mine:nothing",
    ]
    with pytest.raises(EngineError, match=r"'broken'.*can't be imported: no module gone:Engine"):
        engine_from("broken:x")
    with pytest.raises(EngineError, match="made str, no engine"):
        engine_from("odd:")
    with pytest.raises(EngineError, match="did you mean size"):
        engine_from("mine:some/model?sizes=3")
    with pytest.raises(EngineError, match="did you mean size"):
        engine_from("mine:some/model", sizes=3)


def test_entry_points_of_any_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    _points(monkeypatch, MyEngine="mine:any", bad="bad:Engine", five="mine:five")
    for line in ("MyEngine:m?depth=3&name=x", "myengine:m?depth=3&name=x"):
        engine: Any = engine_from(line, more=None)
        assert engine.values == {"model": "m", "depth": 3, "name": "x", "more": None}
    with pytest.raises(EngineError, match=r"'bad'.*can't be imported: not on this machine"):
        engine_from("bad:x")
    with pytest.raises(EngineError, match=r"'five' \(mine:five\) is 5: it should be a class or a function"):
        engine_from("five:x")
    _points(monkeypatch, x="mine:any", HF="mine:any")
    with pytest.warns(UserWarning, match="left out") as warned:
        assert [scheme.origin for scheme in engine_schemes() if scheme.origin] == []
    assert len(warned) == 2


def test_lines_that_are_hardly_any(tmp_path: Path) -> None:
    assert parse_line("a" * 5000).engine.scheme == "hf"
    with pytest.raises(EngineError, match=r"sampling=.* \(temperature: Input should be greater than or equal to 0\)"):
        engine_from('nano?sampling={"temperature":-1}')
    (tmp_path / "really?").mkdir()
    (tmp_path / "50%25").mkdir()
    for name in ("really%3F", "50%25"):
        read = parse_line(f"hf:{tmp_path}/{name}")
        assert read.engine.target(read.target)[0] == (str(tmp_path / name.replace("%3F", "?")),)


def test_entry_points_do_not_replace_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    _points(monkeypatch, hf="mine:Derived")
    with pytest.warns(UserWarning, match="'hf' of mine:Derived is left out: kani-lite has one"):
        schemes = engine_schemes()
    assert [scheme.origin for scheme in schemes if scheme.scheme == "hf"] == [None]


def test_every_engine_is_one_that_this_package_has() -> None:
    """A class that can't be imported is one whose package is missing."""
    for scheme in engine_schemes():
        if not scheme.missing:
            assert issubclass(scheme.load(), BaseEngine)
