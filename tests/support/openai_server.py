"""A server that speaks OpenAI's chat completions as a test has written down, well or badly; or with a real engine.

It runs in threads and knows nothing of the client's event loop.
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from inspect import isawaitable
from typing import Any

from kani_lite import AIFunction, ChatMessage, ChatRole, ReasoningPart, ToolCall
from kani_lite.engines import BaseCompletion, BaseEngine, SamplingParams
from kani_lite.events import Delta, ReasoningDelta, TextDelta, ToolCallDelta, ToolCallStarted
from kani_lite.exceptions import EngineError, KaniException, PromptTooLong

ROLES = {"system": ChatRole.SYSTEM, "user": ChatRole.USER, "assistant": ChatRole.ASSISTANT, "tool": ChatRole.FUNCTION}
USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}


@dataclass(frozen=True)
class Request:
    """What the client sent."""

    path: str
    headers: dict[str, str]
    body: Any
    at: float = field(default_factory=time.monotonic)


class Exchange(BaseHTTPRequestHandler):
    """One request and the answer to it, as steps write it."""

    protocol_version = "HTTP/1.1"
    script: Script  # set on the class that each server makes
    streaming = False

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base's name
        return

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # a client that hangs up
            self.close_connection = True

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _answer(self, body: Any) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.path, headers, body)
        self.script.requests.append(request)
        try:
            self.script.step_for(request)(self, request)
        except ConnectionError:
            raise
        except KaniException as error:
            self._fail(error, 400)
        except Exception as error:  # the test is told of it when the server ends
            self.script.errors.append(error)
            self._fail(error, 500)

    def _fail(self, error: Exception, number: int) -> None:
        """An error in OpenAI's form, in a stream or in place of an answer."""
        code = "context_length_exceeded" if isinstance(error, PromptTooLong) else number
        body = {"error": {"message": str(error), "type": type(error).__name__, "code": code}}
        if self.streaming:
            self.send_piece(b"data: " + json.dumps(body).encode() + b"\n\n")
            self.end_stream()
        else:
            self.send_json(body, number)

    def send_json(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_bytes(json.dumps(body).encode(), status, headers)

    def send_bytes(
        self, data: bytes, status: int = 200, headers: dict[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def begin_stream(self) -> None:
        self.streaming = True
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def send_piece(self, data: bytes) -> None:
        """A chunk of HTTP, which need not be a whole event."""
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")
        self.streaming = False

    def drop(self, *, reset: bool) -> None:
        """Ends the connection without an end of the answer."""
        self.close_connection = True
        if reset:  # a close without lingering sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def check_heard(self) -> None:
        """Raises ConnectionResetError if the client has hung up."""
        if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
            raise ConnectionResetError("The client has hung up.")

    def wait_for_hangup(self) -> None:
        """Waits until the client has closed the connection."""
        with suppress(ConnectionResetError):
            while self.connection.recv(1024):
                continue
        self.script.hung_up.set()
        self.close_connection = True


Step = Callable[[Exchange, Request], None]


@dataclass
class Script:
    """`steps` answer the chat completions in their order, `chat` those that no step is left for. `tokenize`: the count
    of a prompt, as vLLM's route says it; None: there is no such route. `errors`: what steps raised by mistake."""

    steps: list[Step] = field(default_factory=list)
    models: list[dict[str, Any]] | None = None
    tokenize: Callable[[Any], int] | None = None
    chat: Step | None = None
    requests: list[Request] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    @property
    def chats(self) -> list[Request]:
        """The requests for chat completions."""
        return [request for request in self.requests if request.path == "/v1/chat/completions"]

    def step_for(self, request: Request) -> Step:
        if request.path == "/v1/models" and self.models is not None:
            models = self.models
            return lambda exchange, _: exchange.send_json({"object": "list", "data": models})
        if request.path == "/tokenize" and self.tokenize is not None:
            count = self.tokenize
            return lambda exchange, _: exchange.send_json({"count": count(request.body), "max_model_len": 4096})
        if request.path == "/v1/chat/completions":
            if self.steps:
                return self.steps.pop(0)
            if self.chat is not None:
                return self.chat
        return status(404, "Not Found")


@contextmanager
def serving(script: Script) -> Iterator[Script]:
    """The script on a port of its own; `script.url` ends in /v1. Raises what steps raised, at the end."""
    handler = type("ScriptedExchange", (Exchange,), {"script": script})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    if script.errors:
        raise ExceptionGroup("The server's steps failed.", script.errors)


# ==== steps ====


def answer(
    message: dict[str, Any], finish: str | None = "stop", usage: dict[str, Any] | None = USAGE, **choice: Any
) -> Step:
    """A whole reply. `choice`: more fields of that."""
    said = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, **choice}
    body = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [said]}
    return lambda exchange, _: exchange.send_json(body | ({"usage": usage} if usage else {}))


def event(
    delta: dict[str, Any] | None, finish: str | None = None, choice: dict[str, Any] | None = None, **more: Any
) -> bytes:
    """One event of a stream; without a delta, one without choices. `choice`: more fields of that."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish, **(choice or {})}]
    chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def events(
    deltas: Sequence[dict[str, Any]], finish: str | None = "stop", usage: dict[str, Any] | None = USAGE
) -> list[bytes]:
    """All events of a reply."""
    made = [event(delta) for delta in deltas]
    if finish is not None:
        made.append(event({}, finish))
    if usage is not None:
        made.append(event(None, usage=usage))
    return [*made, b"data: [DONE]\n\n"]


def streamed(pieces: Sequence[bytes], seconds: float = 0.0) -> Step:
    """These bytes, one piece of HTTP each, with a wait between them."""

    def step(exchange: Exchange, _: Request) -> None:
        exchange.begin_stream()
        for piece in pieces:
            exchange.send_piece(piece)
            if seconds:
                time.sleep(seconds)
        exchange.end_stream()

    return step


def says(*texts: str) -> Step:
    """A reply in text, streamed or whole as the client wants it."""
    return either(answer({"content": "".join(texts)}), streamed(events([{"content": text} for text in texts])))


def either(whole: Step, stream: Step) -> Step:
    return lambda exchange, request: (stream if request.body.get("stream") else whole)(exchange, request)


def status(number: int, message: str, headers: dict[str, str] | None = None, **error: Any) -> Step:
    """An error in OpenAI's form."""
    body = {"error": {"message": message, "type": "some_error", "code": None, **error}}
    return lambda exchange, _: exchange.send_json(body, number, headers)


def reset(exchange: Exchange, _: Request) -> None:
    """No answer but a connection that is reset."""
    exchange.drop(reset=True)


def cut(pieces: Sequence[bytes], *, clean: bool = False) -> Step:
    """These bytes, and then nothing more; `clean`: with a proper end of the HTTP answer."""

    def step(exchange: Exchange, _: Request) -> None:
        exchange.begin_stream()
        for piece in pieces:
            exchange.send_piece(piece)
        if clean:
            exchange.end_stream()
        else:
            exchange.drop(reset=False)

    return step


def hangs(pieces: Sequence[bytes] = ()) -> Step:
    """These bytes, and then nothing until the client hangs up."""

    def step(exchange: Exchange, _: Request) -> None:
        if pieces:
            exchange.begin_stream()
        for piece in pieces:
            exchange.send_piece(piece)
        exchange.wait_for_hangup()

    return step


# ==== a real engine behind the server ====

# what goes to the engine as it is, and what is read here; anything else is refused
_SAMPLING = SamplingParams.model_fields.keys() - {"logprobs"} | {"tool_choice"}
_READ = {"model", "messages", "tools", "stream", "stream_options", "logprobs", "top_logprobs"}


def script_of(engine: BaseEngine, name: str = "model") -> Script:
    """A server that answers with an engine, counts with it, and says how long its context is."""
    card = {"id": name, "object": "model", "owned_by": "vllm", "max_model_len": engine.max_context_size}

    async def count(body: Any) -> int:
        found = engine.prompt_len(*_chat(body))
        return await found if isawaitable(found) else found

    return Script(models=[card], tokenize=lambda body: asyncio.run(count(body)), chat=partial(_reply, engine))


def _chat(body: Any) -> tuple[list[ChatMessage], list[AIFunction] | None]:
    messages = []
    for one in body["messages"]:
        calls = [ToolCall.model_validate(call) for call in one.get("tool_calls") or ()]
        more = {"tool_calls": calls or None, "tool_call_id": one.get("tool_call_id"), "name": one.get("name")}
        messages.append(ChatMessage(role=ROLES[one["role"]], content=one["content"], **more))
    specs = [tool["function"] for tool in body.get("tools") or ()]
    functions = [
        AIFunction(lambda **_: None, name=s["name"], desc=s["description"], json_schema=s["parameters"]) for s in specs
    ]
    return messages, functions or None


def _options(body: Any) -> dict[str, Any]:
    if unknown := sorted(body.keys() - _SAMPLING - _READ):
        raise EngineError(f"This server does not know {', '.join(unknown)}: leave it out.")
    logprobs = {"logprobs": body.get("top_logprobs", 0)} if body.get("logprobs") else {}
    return logprobs | {name: body[name] for name in _SAMPLING & body.keys()}


def _reply(engine: BaseEngine, exchange: Exchange, request: Request) -> None:
    """The engine's reply, piece by piece or whole. The engine stops when the client hangs up."""
    with asyncio.Runner() as runner:  # its loop stands still while the answer is written
        stream: Any = engine.stream(*_chat(request.body), **_options(request.body))

        async def step() -> Any:
            return await anext(stream, None)

        def items() -> Iterator[Any]:
            while (item := runner.run(step())) is not None:
                exchange.check_heard()
                yield item

        try:
            (_reply_in_pieces if request.body.get("stream") else _reply_whole)(engine, exchange, request, items())
        finally:
            runner.run(stream.aclose())


def _reply_whole(engine: BaseEngine, exchange: Exchange, request: Request, items: Iterator[Any]) -> None:
    *_, last = items
    message = last.message
    said: dict[str, Any] = {"content": message.text}
    if thought := "".join(part.content for part in message.parts if isinstance(part, ReasoningPart)):
        said["reasoning_content"] = thought
    if message.tool_calls:
        said["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    finish, usage, more = _ending(engine, last)
    answer(said, finish, usage, **more)(exchange, request)


def _reply_in_pieces(engine: BaseEngine, exchange: Exchange, request: Request, items: Iterator[Any]) -> None:
    for item in items:
        if not exchange.streaming:  # a prompt that is refused has another status
            exchange.begin_stream()
        if isinstance(item, BaseCompletion):
            finish, usage, more = _ending(engine, item)
            exchange.send_piece(event({}, finish, more))
            if (request.body.get("stream_options") or {}).get("include_usage"):
                exchange.send_piece(event(None, usage=usage))
        elif (delta := _delta(item)) is not None:
            exchange.send_piece(event(delta))
    exchange.send_piece(b"data: [DONE]\n\n")
    exchange.end_stream()


def _delta(item: str | Delta) -> dict[str, Any] | None:
    if isinstance(item, str | TextDelta):
        return {"content": item if isinstance(item, str) else item.text}
    if isinstance(item, ReasoningDelta):
        return {"reasoning_content": item.text}
    if isinstance(item, ToolCallStarted):
        return {"tool_calls": [{"index": item.index, "id": item.id, "function": {"name": item.name}}]}
    if isinstance(item, ToolCallDelta):
        return {"tool_calls": [{"index": item.index, "function": {"arguments": item.arguments}}]}
    return None


def _ending(engine: Any, done: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(why a reply ended, its usage, its logprobs if they were asked for)."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        text = engine.decode([token])
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}

    usage = {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.completion_tokens}
    reason = "tool_calls" if done.message.tool_calls else done.finish_reason
    if done.logprobs is None:
        return reason, usage, {}
    told = [one(e.token, e.logprob) | {"top_logprobs": [one(*other) for other in e.top.items()]} for e in done.logprobs]
    return reason, usage, {"logprobs": {"content": told}}
