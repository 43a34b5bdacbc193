"""From messages to a prompt in steps that can be read, tried and explained."""

from __future__ import annotations

import pprint
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Self, TypeVar, overload

from kani_lite.exceptions import PromptError
from kani_lite.functions import AIFunction
from kani_lite.messages import ChatMessage, ChatRole

from . import steps_explained as explained
from .examples import build_conversation, build_functions
from .steps import (
    Apply,
    EnsureBoundFunctionCalls,
    EnsureStart,
    FunctionCallFmt,
    MacroApply,
    MergeConsecutive,
    Remove,
    TranslateRole,
    Wrap,
)
from .steps_base import MessageStep, PipelineStep, are_messages, own_copy
from .steps_terminal import ConversationDict, ConversationFmt, message_text, no_keys
from .types import (
    ApplyContext,
    ApplyResultT,
    FunctionCallStrT,
    MacroApplyResultT,
    MessageContentT,
    PipelineMsgT,
    PredicateFilterT,
    RoleFilterT,
)

T = TypeVar("T")


class PromptPipeline(Generic[T]):
    r"""Makes a model's prompt of messages, in steps. Each method below adds a step and returns the pipeline; calling
    the pipeline runs them; `explain` prints what they do to an example.

        pipeline = (
            PromptPipeline()
            .wrap(role=ChatRole.SYSTEM, prefix="<<SYS>>\n", suffix="\n<</SYS>>\n")
            .translate_role(role=ChatRole.SYSTEM, to=ChatRole.USER)
            .merge_consecutive(role=ChatRole.USER, sep="\n")
            .conversation_fmt(user_prefix="[INST] ", user_suffix=" [/INST]", assistant_suffix="</s>")
        )
        prompt = pipeline(messages)

    Many steps take `role`, a ChatRole or a collection of them, and `predicate`, a function of a message: the step is
    then only for messages that both let through. A wrong argument raises ValueError.

    Running a pipeline changes neither the pipeline nor the messages given to it, and takes time linear in them.
    `steps` is the list of its steps.
    """

    @overload
    def __init__(self: PromptPipeline[list[ChatMessage]], steps: None = None) -> None: ...

    @overload
    def __init__(self: PromptPipeline[Any], steps: Iterable[PipelineStep]) -> None: ...

    def __init__(self, steps: Iterable[PipelineStep] | None = None) -> None:
        self.steps: list[PipelineStep] = list(steps or ())

    # === steps =======================================================================================================

    def translate_role(
        self,
        *,
        to: ChatRole,
        warn: str | None = None,
        role: RoleFilterT | None = None,
        predicate: PredicateFilterT | None = None,
    ) -> Self:
        """Gives messages the role `to`, for models that don't know theirs. With `warn`, a run that does so warns once
        with that text."""
        return self._with(TranslateRole(to=to, warn=warn, role=role, predicate=predicate))

    def wrap(
        self,
        *,
        prefix: str | None = None,
        suffix: str | None = None,
        role: RoleFilterT | None = None,
        predicate: PredicateFilterT | None = None,
    ) -> Self:
        """Puts text before and after the content of messages; no content counts as an empty text."""
        return self._with(Wrap(prefix=prefix, suffix=suffix, role=role, predicate=predicate))

    def merge_consecutive(
        self,
        *,
        sep: str | None = None,
        joiner: Callable[[list[PipelineMsgT]], MessageContentT] | None = None,
        out_role: ChatRole | None = None,
        role: RoleFilterT | None = None,
        predicate: PredicateFilterT | None = None,
    ) -> Self:
        """Makes one message of each run of matching messages, of different roles too if the filter lets them through.

        Its content is theirs with `sep` between them, or what `joiner` makes of the list of them. With `joiner`, a
        message that stands alone goes through it too; with `sep`, it stays as it is. The merged message has the role
        `out_role` (may be left out if `role` is a single one), all the tool calls, and no tool_call_id.
        """
        return self._with(MergeConsecutive(sep=sep, joiner=joiner, out_role=out_role, role=role, predicate=predicate))

    def function_call_fmt(self, func: FunctionCallStrT, *, prefix: str = "\n", sep: str = "", suffix: str = "") -> Self:
        """Appends `prefix`, the tool calls as `func` writes them with `sep` between, and `suffix` to the content of
        each message that has tool calls. Calls for which `func` returns None are left out."""
        return self._with(FunctionCallFmt(func, prefix=prefix, sep=sep, suffix=suffix))

    def remove(self, *, role: RoleFilterT | None = None, predicate: PredicateFilterT | None = None) -> Self:
        """Removes messages."""
        return self._with(Remove(role=role, predicate=predicate))

    def ensure_start(self, *, role: RoleFilterT | None = None, predicate: PredicateFilterT | None = None) -> Self:
        """Removes what comes before the first message that matches, such as an answer whose question was trimmed off.
        It can't see to it that there is a system message: without a match it removes everything."""
        return self._with(EnsureStart(role=role, predicate=predicate))

    def ensure_bound_function_calls(self, id_translator: Callable[[str], str] | None = None) -> Self:
        """Sees to it that each function result follows the call that it answers, and has its id.

        A result whose call isn't there is removed; a result without an id gets that of the only open call.
        `id_translator` then rewrites all ids, for models that want them in a form of their own. Running it raises
        PromptError if another message comes before all calls are answered, or a result could answer several.
        """
        return self._with(EnsureBoundFunctionCalls(id_translator))

    @overload
    def apply(
        self,
        func: Callable[[PipelineMsgT], ApplyResultT | None],
        *,
        role: RoleFilterT | None = None,
        predicate: PredicateFilterT | None = None,
    ) -> PromptPipeline[list[ApplyResultT]]: ...

    @overload
    def apply(
        self,
        func: Callable[[PipelineMsgT, ApplyContext], ApplyResultT | None],
        *,
        role: RoleFilterT | None = None,
        predicate: PredicateFilterT | None = None,
    ) -> PromptPipeline[list[ApplyResultT]]: ...

    def apply(
        self,
        func: Callable[..., Any],
        *,
        role: RoleFilterT | None = None,
        predicate: PredicateFilterT | None = None,
    ) -> Any:
        """Replaces messages by what `func` returns for them, or removes them where it returns None.

        `func` takes the message, and an ApplyContext too if it has a second positional parameter. It may change the
        message in place, except for the parts and the tool calls in it. Where it makes something else than messages,
        only `macro_apply` and steps of your own can follow.
        """
        return self._with(Apply(func, role=role, predicate=predicate))

    def macro_apply(
        self, func: Callable[[T, list[AIFunction]], MacroApplyResultT]
    ) -> PromptPipeline[MacroApplyResultT]:
        """Replaces the whole list of messages by what `func` makes of it and the list of functions.

        After a terminal step, `func` gets what that step made.
        """
        return self._ending_with(MacroApply(func))

    # === terminal steps ==============================================================================================

    def conversation_fmt(
        self,
        *,
        prefix: str = "",
        sep: str = "",
        suffix: str = "",
        generation_suffix: str = "",
        user_prefix: str = "",
        user_suffix: str = "",
        assistant_prefix: str = "",
        assistant_suffix: str = "",
        assistant_suffix_if_last: str | None = None,
        system_prefix: str = "",
        system_suffix: str = "",
        function_prefix: str | None = None,
        function_suffix: str | None = None,
    ) -> PromptPipeline[str]:
        """Ends the pipeline with one text: `prefix`, the messages and `generation_suffix` with `sep` between them,
        `suffix`.

        Each message stands between the prefix and the suffix of its role; those of function results are those of user
        messages if they aren't given. `generation_suffix` opens the model's answer. With `assistant_suffix_if_last`,
        a chat that ends on an assistant message ends with this text in place of `assistant_suffix` and
        `generation_suffix`, so that the model goes on with that message.
        """
        return self._ending_with(
            ConversationFmt(
                prefix=prefix,
                sep=sep,
                suffix=suffix,
                generation_suffix=generation_suffix,
                user_prefix=user_prefix,
                user_suffix=user_suffix,
                assistant_prefix=assistant_prefix,
                assistant_suffix=assistant_suffix,
                assistant_suffix_if_last=assistant_suffix_if_last,
                system_prefix=system_prefix,
                system_suffix=system_suffix,
                function_prefix=function_prefix,
                function_suffix=function_suffix,
            )
        )

    def conversation_dict(
        self,
        *,
        system_role: str = "system",
        user_role: str = "user",
        assistant_role: str = "assistant",
        function_role: str = "tool",
        content_transform: Callable[[ChatMessage], Any] = message_text,
        additional_keys: Callable[[ChatMessage], dict[str, Any]] = no_keys,
    ) -> PromptPipeline[list[dict[str, Any]]]:
        """Ends the pipeline with a dict for each message: its role under the name given here, as content what
        `content_transform` makes of it (its text), and the `additional_keys` made of it (none).

        Tool calls, names and ids are not in the dicts unless `additional_keys` puts them there.
        """
        return self._ending_with(
            ConversationDict(
                system_role=system_role,
                user_role=user_role,
                assistant_role=assistant_role,
                function_role=function_role,
                content_transform=content_transform,
                additional_keys=additional_keys,
            )
        )

    # === running =====================================================================================================

    def __call__(
        self,
        msgs: Sequence[ChatMessage],
        functions: Sequence[AIFunction] | None = None,
        *,
        deepcopy: bool = False,
        for_measurement: bool = False,
    ) -> T:
        """The prompt of these messages: see `execute`."""
        return self.execute(msgs, functions, deepcopy=deepcopy, for_measurement=for_measurement)

    def execute(
        self,
        msgs: Sequence[ChatMessage],
        functions: Sequence[AIFunction] | None = None,
        *,
        deepcopy: bool = False,
        for_measurement: bool = False,
    ) -> T:
        """What the last step makes of these messages: copies of the messages if there is no step.

        `functions` are those that the model may call. The pipeline works on copies that share the parts and the tool
        calls with `msgs`, which no step of ours changes; `deepcopy` copies these too, for functions of yours that do.
        `for_measurement` is for the length of messages out of their chat: it leaves out `ensure_start`.

        Raises ValueError if these aren't messages, PromptError if a step can't make a prompt of them or isn't given
        messages by the step before it.
        """
        made: Any = _copies(msgs, deepcopy)
        steps = self._run(made, list(functions or ()), for_measurement=for_measurement)
        for _, made in steps:  # noqa: B007  # the last one is the result
            pass
        result: T = made
        return result

    def _run(
        self, data: Any, functions: list[AIFunction], *, for_measurement: bool = False
    ) -> Iterator[tuple[int, Any]]:
        """The number of each step, from 1, and what it made."""
        for number, step in enumerate(self.steps, 1):
            if for_measurement and isinstance(step, EnsureStart):
                continue
            if isinstance(step, MessageStep) and not are_messages(data):
                raise PromptError(
                    f"Step {number}, {type(step).__name__}, takes a list of messages, but the steps before it made a "
                    f"{type(data).__name__} of something else: put it before them, or use macro_apply."
                )
            data = step.execute(data, functions)
            yield number, data

    # === looking at it ===============================================================================================

    def explain(
        self,
        example: Sequence[ChatMessage] | None = None,
        functions: Sequence[AIFunction] | None = None,
        *,
        all_cases: bool = False,
        **kwargs: bool,
    ) -> None:
        """Prints what the steps do, in words and on an example: its messages, what each step changes, the result.

        The example is `example` with `functions`, or a chat made up of what the steps need. `all_cases=True` or
        keywords of `prompts.examples.build_conversation`, such as `function_call=True`, put more into it. The
        functions in the pipeline are called with it. Raises ValueError for another keyword.
        """
        shown = explained.example_kwargs(self.steps, kwargs, all_cases=all_cases)
        groups = build_conversation(**shown) if example is None else [list(example)]
        available = build_functions(**shown) if functions is None else list(functions)

        _print([*explained.summary(self.steps), "", *explained.example_input(groups)])
        made: Any = _copies([msg for group in groups for msg in group], deep=False)
        before = explained.snapshot(made)
        steps = self._run(made, available)
        for number, made in steps:
            _print(["", *explained.step_changes(number, self.steps[number - 1], before, made)])
            before = explained.snapshot(made)
        _print(["", *explained.result(made), *(explained.not_shown(shown) if example is None else ())])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({pprint.pformat(self.steps)})"

    def __len__(self) -> int:
        return len(self.steps)

    @overload
    def __getitem__(self, item: int) -> PipelineStep: ...

    @overload
    def __getitem__(self, item: slice) -> list[PipelineStep]: ...

    def __getitem__(self, item: int | slice) -> PipelineStep | list[PipelineStep]:
        return self.steps[item]

    def _with(self, step: PipelineStep) -> Self:
        self.steps.append(step)
        return self

    def _ending_with(self, step: PipelineStep) -> PromptPipeline[Any]:
        """The same as `_with`, for a step after which the pipeline makes something else."""
        return self._with(step)


def _copies(msgs: Sequence[ChatMessage], deep: bool) -> list[ChatMessage]:
    for msg in msgs:
        if not isinstance(msg, ChatMessage):
            raise ValueError(f"A pipeline takes a list of ChatMessages, and there is {msg!r:.60} in this one.")
    return [own_copy(msg, deep) for msg in msgs]


def _print(lines: Iterable[str]) -> None:
    print("\n".join(lines))
