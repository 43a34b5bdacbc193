"""AIFunction and its decorator."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import pickle
import subprocess
import sys
import threading
import timeit
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import pytest
from pydantic import BaseModel, Field

from kani_lite.exceptions import FunctionSpecError
from kani_lite.functions import AIFunction, AIParam, ArgumentsError, ai_function
from kani_lite.messages import ChatRole

if TYPE_CHECKING:
    from somewhere import Unknown  # type: ignore[import-not-found]

DEFAULTS = {
    "after": ChatRole.ASSISTANT,
    "name": None,
    "desc": None,
    "auto_retry": True,
    "json_schema": None,
    "auto_truncate": None,
    "enabled": True,
    "risky": False,
    "timeout": None,
}


class Tools:
    factor = 2

    class Options(BaseModel):
        deep: bool = False

    @ai_function
    def double(self, n: int) -> int:
        """Double a number."""
        return n * self.factor

    @ai_function(risky=True, timeout=1.5, after=ChatRole.USER)
    async def halve(self, n: int) -> float:
        """Halve a number."""
        return n / self.factor

    @ai_function
    @staticmethod
    def static(n: int) -> int:
        """Add one."""
        return n + 1

    @ai_function
    @classmethod
    def cls_method(cls, n: int) -> int:
        """Times factor."""
        return n * cls.factor

    def with_options(self, options: Options) -> bool:
        """Uses a class of this class."""
        return options.deep


def module_level(a: int, b: int = 2) -> int:
    """Add."""
    return a + b


# ===== decorator =====
def test_decorator_returns_the_function_itself() -> None:
    def f() -> None: ...

    assert ai_function(f) is f
    assert vars(f)["__ai_function__"] == DEFAULTS
    assert ai_function()(f) is f
    assert ai_function(name="n", desc="d", auto_retry=False, json_schema={}, auto_truncate=9, enabled=False)(f) is f
    expected = {"name": "n", "desc": "d", "auto_retry": False, "json_schema": {}, "auto_truncate": 9, "enabled": False}
    assert vars(f)["__ai_function__"] == DEFAULTS | expected


def test_settings_make_an_ai_function() -> None:
    tools = Tools()
    marked: Any = tools.halve
    function = AIFunction(marked, **marked.__ai_function__)
    assert (function.name, function.desc) == ("halve", "Halve a number.")
    assert (function.after, function.risky, function.timeout) == (ChatRole.USER, True, 1.5)
    assert (function.auto_retry, function.auto_truncate, function.enabled) == (True, None, True)
    assert function.inner == tools.halve
    assert (function.__name__, function.__qualname__) == ("halve", "Tools.halve")
    assert (function.__module__, function.__doc__) == (__name__, "Halve a number.")
    assert function.__annotations__ == {"n": "int", "return": "float"}
    assert repr(function) == "<AIFunction halve(n)>"


def test_static_and_class_methods_are_found_marked() -> None:
    for method in (Tools.static, Tools().static, Tools.cls_method, Tools().cls_method):
        assert vars(getattr(method, "__func__", method))["__ai_function__"] == DEFAULTS


def test_name_and_description_can_be_given() -> None:
    function = AIFunction(module_level, name="plus", desc="Adds.")
    assert (function.name, function.desc, function.__name__) == ("plus", "Adds.", "module_level")


def test_no_description_warns() -> None:
    def f() -> None: ...

    with pytest.warns(UserWarning, match="'f' has no description"):
        AIFunction(f)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_must_be_positive(timeout: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        AIFunction(module_level, timeout=timeout)


# ===== docstrings =====
def google(city: str, days: int, unit: Annotated[str, AIParam("the unit")]) -> None:
    """Get the weather.

    From a station.

    Args:
        city: Where
            it is.
        days (int): How many.
        unit: not this one

    Returns:
        Nothing.
    """


def numpy(city: str, days: int, unit: Annotated[str, AIParam("the unit")]) -> None:
    """Get the weather.

    From a station.

    Parameters
    ----------
    city : str
        Where
        it is.
    days, unit : int
        How many.

    Returns
    -------
    None
    """


def rest(city: str, days: int, unit: Annotated[str, AIParam("the unit")]) -> None:
    """Get the weather.

    From a station.

    :param city: Where
        it is.
    :param int days: How many.
    :param unit:
    :returns: Nothing.
    """


@pytest.mark.parametrize("func", [google, numpy, rest])
def test_docstrings_describe_parameters(func: Callable[..., Any]) -> None:
    function = AIFunction(func)
    assert function.desc == "Get the weather.\n\nFrom a station."
    assert [param.description for param in function.get_params()] == ["Where it is.", "How many.", "the unit"]
    assert function.json_schema["properties"]["city"] == {"type": "string", "description": "Where it is."}


def test_a_field_description_wins_over_the_docstring() -> None:
    def f(a: Annotated[int, Field(description="field")]) -> None:
        """F.

        Args:
            a: docstring
        """

    assert AIFunction(f).json_schema["properties"]["a"]["description"] == "field"


def test_an_ordinary_docstring_is_kept_whole() -> None:
    def f() -> None:
        """Do it.

        Returns:
            42
        """

    assert AIFunction(f).desc == "Do it.\n\nReturns:\n    42"


def test_a_docstring_that_cannot_be_parsed_is_kept_whole() -> None:
    def f(a: int) -> None:
        """Do it.

        :param a b c d: too many words
        """

    assert AIFunction(f).desc == "Do it.\n\n:param a b c d: too many words"


# ===== calling =====
async def _async_add(a: int, b: int = 2) -> int:
    """Add."""
    return a + b


class Adder:
    """Adds."""

    def __call__(self, a: int, b: int = 2) -> int:
        return a + b


class Documented:
    def __call__(self, a: int, b: int = 2) -> int:
        """Add."""
        return a + b


class AsyncAdder:
    """Adds."""

    async def __call__(self, a: int, b: int = 2) -> int:
        return a + b


def _returns_awaitable(a: int, b: int = 2) -> Awaitable[int]:
    """Add."""
    return _async_add(a, b)


def _add_three(c: int, a: int, b: int = 2) -> int:
    """Add."""
    return a + b + c


@functools.cache
def _cached(a: int, b: int = 2) -> int:
    """Add."""
    return a + b


class Total:
    """A sum."""

    def __init__(self, a: int, b: int = 2) -> None:
        self.sum = a + b

    def __eq__(self, other: object) -> bool:
        return self.sum == other


CALLABLES = [
    module_level,
    _async_add,
    Adder(),
    Documented(),
    AsyncAdder(),
    _returns_awaitable,
    functools.partial(_add_three, 0),
    functools.partial(functools.partial(_add_three, c=0)),
    functools.partial(_async_add),
    staticmethod(module_level),
    _cached,
    Total,
]


@pytest.mark.anyio
@pytest.mark.parametrize("func", CALLABLES, ids=lambda func: str(getattr(func, "__name__", type(func).__name__)))
async def test_every_kind_of_callable(func: Callable[..., Any]) -> None:
    function = AIFunction(func)
    assert function.desc in ("Add.", "Adds.", "A sum.")
    assert await function.run(function.parse_arguments('{"a": "1"}')) == 3
    assert await function.run(function.parse_arguments('{"a": 1, "b": 5}')) == 6
    assert await function(a="1", b=1) == 2


def test_is_async() -> None:
    assert AIFunction(_async_add).is_async
    assert AIFunction(AsyncAdder()).is_async
    assert AIFunction(Tools().halve).is_async
    assert not AIFunction(module_level).is_async
    assert not AIFunction(Tools().double).is_async


def test_names_of_callables() -> None:
    assert AIFunction(Adder()).name == "Adder"
    assert AIFunction(functools.partial(_add_three, 0)).name == "_add_three"
    named = functools.partial(_add_three, 0)
    named.__name__ = "plus"  # type: ignore[attr-defined]
    assert AIFunction(named).name == "plus"
    named = functools.partial(_add_three, 0)
    named.__doc__ = "Own text."
    assert AIFunction(named).desc == "Own text."


@pytest.mark.anyio
async def test_methods() -> None:
    tools = Tools()
    assert await AIFunction(tools.double)(4) == 8
    assert await AIFunction(tools.halve)(n=4) == 2
    assert await AIFunction(tools.static)(4) == 5
    assert await AIFunction(Tools.cls_method)(4) == 8
    assert [param.name for param in AIFunction(tools.double).get_params()] == ["n"]


@pytest.mark.anyio
async def test_each_instance_is_its_own() -> None:
    one, other = Tools(), Tools()
    other.factor = 10
    assert await AIFunction(one.double)(1) == 2
    assert await AIFunction(other.double)(1) == 10


@pytest.mark.anyio
async def test_positional_arguments_are_checked() -> None:
    function = AIFunction(module_level)
    assert await function("1", b="3") == 4
    with pytest.raises(ArgumentsError, match=r"takes at most 2 positional arguments \(got 3\)"):
        await function(1, 2, 3)
    with pytest.raises(ArgumentsError, match="`a`: given twice"):
        await function(1, a=2)
    with pytest.raises(ArgumentsError, match=r"`a`: input should be a valid integer \(got 'x'\)"):
        await function("x")
    with pytest.raises(ArgumentsError, match="`c`: unexpected argument"):
        await function(1, c=2)


@pytest.mark.anyio
async def test_python_values_are_passed_as_they_are() -> None:
    def same(options: Tools.Options, *, aliased: Annotated[int, Field(alias="class")] = 0) -> Any:
        return options, aliased

    options = Tools.Options(deep=True)
    got, aliased = await AIFunction(same, desc="d")(options, aliased=3)
    assert got is options
    assert aliased == 3


@pytest.mark.anyio
async def test_defaults_are_the_functions_own() -> None:
    default: list[int] = []

    def f(a: list[int] = default) -> bool:
        return a is default

    assert await AIFunction(f, desc="d")()


@pytest.mark.anyio
async def test_sync_functions_run_in_a_thread() -> None:
    def sync() -> int:
        return threading.get_ident()

    async def native() -> int:
        return threading.get_ident()

    assert await AIFunction(sync, desc="d")() != threading.get_ident()
    assert await AIFunction(native, desc="d")() == threading.get_ident()


@pytest.mark.anyio
async def test_nobody_waits_for_a_cancelled_sync_function() -> None:
    started, release, ended = threading.Event(), threading.Event(), threading.Event()

    def stuck() -> None:
        started.set()
        release.wait(30)
        ended.set()

    function = AIFunction(stuck, desc="d")
    try:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(function.run, {})
                while not started.is_set():
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
        assert not ended.is_set()
    finally:
        release.set()


@pytest.mark.anyio
@pytest.mark.parametrize("error", [KeyError("k"), ArgumentsError("mine"), SystemError("no")], ids=repr)
async def test_exceptions_are_passed_on(error: BaseException) -> None:
    def sync() -> None:
        raise error

    async def native() -> None:
        raise error

    for func in (sync, native):
        with pytest.raises(type(error)) as caught:
            await AIFunction(func, desc="d").run({})
        assert caught.value is error


@pytest.mark.anyio
async def test_stop_iteration_becomes_an_error() -> None:
    def sync() -> Any:
        return next(iter(()))

    async def native() -> Any:
        return next(iter(()))

    for func in (sync, native):
        with pytest.raises(RuntimeError, match="StopIteration"):
            await AIFunction(func, desc="d").run({})


# ===== signatures =====
def _positional(a: int, /) -> None: ...
def _variadic(*a: int) -> None: ...
def _keywords(**a: int) -> None: ...
def _unannotated(a) -> None: ...  # type: ignore[no-untyped-def]
def _unknown(a: Unknown) -> None: ...
def _broken(a: "1 +") -> None: ...  # type: ignore[valid-type]  # noqa: F722


@pytest.mark.parametrize(
    ("func", "words"),
    [
        (_positional, "'a' of _positional is positional-only"),
        (_variadic, "'a' of _variadic is variadic positional"),
        (_keywords, "'a' of _keywords is variadic keyword"),
        (_unannotated, "'a' of _unannotated has no type annotation"),
        (_unknown, "annotation 'Unknown' of parameter 'a' of _unknown can't be resolved"),
        (_broken, "can't be resolved"),
        (Tools.double, "'self' of double has no type annotation"),
        (type, "type can't be offered"),
        (len, "is positional-only"),
        (vars(Tools)["cls_method"], "signature is unknown"),
    ],
)
def test_signatures_that_cannot_be_described(func: Callable[..., Any], words: str) -> None:
    with pytest.raises(FunctionSpecError, match=words):
        AIFunction(func, desc="d")


def test_a_given_schema_allows_open_signatures() -> None:
    def f(a, *args: int, **kwargs: Any) -> None: ...  # type: ignore[no-untyped-def]

    schema = {"type": "object", "properties": {"a": {}, "z": {}}}
    function = AIFunction(f, desc="d", json_schema=schema)
    assert function.parse_arguments('{"a": [1], "z": 2}') == {"a": [1], "z": 2}
    with pytest.raises(ArgumentsError, match="missing"):
        function.parse_arguments("{}")
    with pytest.raises(FunctionSpecError, match="positional-only"):
        AIFunction(_positional, desc="d", json_schema=schema)
    with pytest.raises(FunctionSpecError):
        AIFunction(f, desc="d")


def test_an_unknown_return_type_does_no_harm() -> None:
    def f(a: int) -> Unknown: ...

    assert AIFunction(f, desc="d").parse_arguments('{"a": 1}') == {"a": 1}


def test_local_types_are_found_while_their_function_runs() -> None:
    class Local(BaseModel):
        a: int

    class Holder:
        class Nested(BaseModel):
            b: int

        def method(self, local: Local, nested: list[Nested], holder: Annotated[int, "Holder"] = 1) -> None: ...

    params = AIFunction(Holder().method, desc="d").get_params()
    assert [param.type for param in params][:2] == [Local, list[Holder.Nested]]


def test_a_nested_class_is_found_through_its_method() -> None:
    function = AIFunction(Tools().with_options)
    assert function.get_params()[0].type is Tools.Options


def _make() -> Any:
    class Gone(BaseModel):
        a: int

    class Owner:
        class Part(BaseModel):
            a: int

        def by_owner(self, part: Part) -> None: ...

        @classmethod
        def by_class(cls, part: Part) -> None: ...

    def captured(a: Gone) -> type:
        return Gone

    def not_captured(a: Gone) -> None: ...

    return Owner, captured, not_captured


def test_local_types_after_their_function_has_returned() -> None:
    owner, captured, not_captured = _make()
    assert AIFunction(owner().by_owner, desc="d").get_params()[0].type is owner.Part
    assert AIFunction(owner.by_class, desc="d").get_params()[0].type is owner.Part
    assert AIFunction(captured, desc="d").get_params()[0].type is captured(1)
    with pytest.raises(FunctionSpecError, match="Gone"):
        AIFunction(not_captured, desc="d")


def test_a_failed_lookup_is_tried_again() -> None:
    def f(a: Later) -> None: ...  # type: ignore[valid-type]

    with pytest.raises(FunctionSpecError, match="Later"):
        AIFunction(f, desc="d")
    Later = int  # noqa: N806
    assert AIFunction(f, desc="d").parse_arguments('{"a": 1}') == {"a": 1}


def test_wrapped_functions_keep_their_own_spec() -> None:
    def inner(a: int) -> None: ...

    AIFunction(inner, desc="d").json_schema  # noqa: B018  # fills the cache that functools.wraps copies

    @functools.wraps(inner)
    def outer(**kwargs: Any) -> None: ...

    outer.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("b", inspect.Parameter.KEYWORD_ONLY, annotation=str)]
    )
    assert [param.name for param in AIFunction(outer, desc="d").get_params()] == ["b"]
    assert [param.name for param in AIFunction(inner, desc="d").get_params()] == ["a"]


def test_copied_partials_take_no_spec_along() -> None:
    original = functools.partial(_add_three, 0)
    AIFunction(original).json_schema  # noqa: B018
    for made in (pickle.loads(pickle.dumps(original)), copy.deepcopy(original)):
        assert list(AIFunction(made).json_schema["properties"]) == ["a", "b"]


# ===== cost =====
def test_the_model_is_built_once_per_function() -> None:
    functions = [AIFunction(Tools().double) for _ in range(3)]
    assert len({id(function.get_params()[0]) for function in functions}) == 1
    assert functions[0].create_json_schema() is not functions[1].create_json_schema()


def test_wrapping_a_known_function_is_cheap() -> None:
    tools = Tools()
    AIFunction(tools.double)
    # about 1.5 us on an idle core
    best = min(timeit.repeat(lambda: AIFunction(tools.double), number=200, repeat=10)) / 200
    assert best < 20e-6


@pytest.mark.anyio
async def test_nothing_pins_an_instance() -> None:
    tools = Tools()
    watch = weakref.ref(tools)
    function = AIFunction(tools.double)
    await function(1)
    function.parse_arguments('{"n": 1}')
    function.create_json_schema()
    with pytest.raises(ArgumentsError):
        function.parse_arguments("{}")
    del function, tools
    gc.collect()
    assert watch() is None


def test_an_instance_without_a_cycle_goes_at_once() -> None:
    tools = Tools()
    watch = weakref.ref(tools)
    function = AIFunction(tools.double)
    function.json_schema  # noqa: B018
    gc.disable()
    try:
        del function, tools
        assert watch() is None
    finally:
        gc.enable()


def test_an_instance_that_holds_its_functions_is_freed() -> None:
    class Chat(Tools):
        def __init__(self) -> None:
            self.functions = [AIFunction(self.double), AIFunction(self.with_options)]
            self.schemas = [function.json_schema for function in self.functions]

    watches = [weakref.ref(Chat()) for _ in range(5)]
    gc.collect()
    assert [watch() for watch in watches] == [None] * 5


def test_a_class_that_its_own_method_names_is_freed() -> None:
    def define() -> weakref.ref[type]:
        class Tool:
            class Part(BaseModel):
                a: int

            def use(self, part: Part) -> None: ...

        AIFunction(Tool().use, desc="d").json_schema  # noqa: B018
        return weakref.ref(Tool)

    watch = define()
    gc.collect()
    assert watch() is None


def test_importing_is_light() -> None:
    code = (
        "import sys, kani_lite.functions;"
        "print([name for name in ('docstring_parser', 'torch', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
