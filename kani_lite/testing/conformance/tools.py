"""Cases about functions."""

from __future__ import annotations

from typing import Any

from kani_lite.functions import AIFunction
from kani_lite.kani import Kani
from kani_lite.messages import ChatMessage, ChatRole

from .cases import case
from .counting import tool_chat
from .probe import Probe, calls_in, named
from .profile import CaseFailed


def _check_calls(probe: Probe, message: ChatMessage) -> None:
    tool, expected = probe.profile.tool, probe.profile.tool_arguments
    calls = message.tool_calls or []
    if not calls or calls[0].function.name != tool.name:
        raise CaseFailed(
            f"{probe.profile.tool_query!r} should call {tool.name}: the message has the calls "
            f"{[call.function.name for call in calls]} and the text {message.text!r:.200}."
        )
    if not calls[0].id:
        raise CaseFailed(f"The call of {tool.name} has no id: its result could not refer to it.")
    try:
        arguments = tool.parse_arguments(calls[0].function.arguments)
    except Exception as error:
        raise CaseFailed(f"The arguments of {tool.name} are not valid: {named(error)}.") from error
    if expected is not None and arguments != dict(expected):
        raise CaseFailed(f"{tool.name} is called with {arguments}, and should be with {dict(expected)}.")


@case
async def tools_are_called(probe: Probe) -> None:
    """A clear request makes the model call the function with valid arguments, streamed or not."""
    asked = probe.tool_query()
    _check_calls(probe, (await probe.predict(asked, probe.functions)).message)
    _check_calls(probe, (await probe.stream(asked, probe.functions)).completion.message)


@case
async def calls_can_be_switched_off(probe: Probe) -> None:
    """With `disable_function_calling_kwargs` the same request gives no call, streamed or not."""
    asked = probe.tool_query()
    extra = dict(probe.engine.disable_function_calling_kwargs)
    # the chat takes this one out, and the functions with it
    functions = probe.functions if extra.pop("include_functions", True) else None
    whole = (await probe.predict(asked, functions, **extra)).message
    streamed = await probe.stream(asked, functions, **extra)
    for name, found in (
        ("predict's message", whole.tool_calls),
        ("the stream's message", streamed.completion.message.tool_calls),
        ("the stream", calls_in(streamed.items)),
    ):
        if found:
            raise CaseFailed(f"Calls are switched off, and {name} has {found!r:.200}.")


@case
async def tool_results_are_taken(probe: Probe) -> None:
    """A history with a call and its result is answered, with and without functions on offer."""
    for functions in (probe.functions, None):
        message = (await probe.predict(tool_chat(probe), functions)).message
        if message.role is not ChatRole.ASSISTANT:
            raise CaseFailed(f"The reply to a result is a message of the {message.role.value}.")


@case
async def a_full_round_runs(probe: Probe) -> str:
    """A Kani with the function runs a whole round: a call, its result, a last word."""
    query = probe.tool_query()[0].text
    tool = probe.profile.tool
    given: list[dict[str, Any]] = []

    async def noted(**arguments: Any) -> Any:
        given.append(arguments)
        return await tool.run(arguments)

    watched = AIFunction(noted, name=tool.name, desc=tool.desc, json_schema=tool.json_schema)
    ai = Kani(probe.engine, functions=[watched])
    messages = [m async for m in ai.full_round(query, max_function_rounds=3, **probe.profile.greedy)]
    roles = [message.role.value for message in messages]
    if roles[:2] != ["assistant", "function"] or roles[-1] != "assistant" or messages[-1].tool_calls:
        raise CaseFailed(f"A round should be a call, its result and a last word, and is {roles}.")
    _check_calls(probe, messages[0])
    if not given or messages[1].is_tool_call_error:
        raise CaseFailed(f"The function was not run: its result is {messages[1].text!r:.200}.")
    return f"{len(messages)} messages"
