"""The way to a server: a client of the openai package, repeated attempts, and errors that say what to do."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from importlib import import_module
from json import JSONDecodeError
from typing import Any, TypeVar
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel

from kani_lite.engines.wrappers import Backoff
from kani_lite.exceptions import EngineError, KaniException

from . import server
from .errors import ServerError, told_error, translated
from .package import openai_module
from .reply import odd_part

T = TypeVar("T")
_PROBE_SECONDS = 15.0  # for a server to list its models
_PROBE_RETRIES = 2
_END_SECONDS = 0.5  # for what is left of a stream that was closed: nothing, but in a client of one's own
_LINE_END = re.compile(rb"[\r\n]")  # an empty line between both says nothing
_OTHER_FIELDS = (b":", b"event:", b"id:", b"retry:")  # of a stream, beside "data:"

DONE = object()
"""A server's word that its stream is complete."""


class Connection:
    """A server's address and the client for it. `options`: for a client that is made here; or a `client` as it is.

    `retry`: how often a request that failed is repeated where that may help. `timeout`: seconds.
    """

    def __init__(
        self, options: dict[str, Any] | None, client: Any, retry: int, backoff: Backoff, timeout: float | None
    ) -> None:
        openai = openai_module()
        self._make = openai.AsyncOpenAI
        self._make_http = openai.DefaultAsyncHttpxClient
        self._make_sync, self._make_http_sync = openai.OpenAI, openai.DefaultHttpxClient
        found = (openai.OpenAIError, *_http_errors(), OSError, JSONDecodeError, UnicodeDecodeError)
        self.failures: tuple[type[Exception], ...] = found
        self._retried: tuple[type[Exception], ...] = (ServerError, *found)
        self.retry, self.backoff, self._timeout = retry, backoff, timeout
        self._options = options
        self._http: dict[str, Any] = {} if options is None else _http_options(options)
        self.client: Any = client if options is None else self._new_client(options)
        self.url = str(self.client.base_url).rstrip("/")
        self._loop: Any = None
        self._old_clients: list[Any] = []
        self._closed = False

    @property
    def is_openai(self) -> bool:
        """Whether this is OpenAI itself, as far as is known."""
        return self._options is not None and self._options["base_url"] is None

    @property
    def has_own_client(self) -> bool:
        """Whether the client was made here."""
        return self._options is not None

    def _new_client(self, options: dict[str, Any]) -> Any:
        return self._make(**options, max_retries=0, timeout=self._timeout, http_client=self._make_http(**self._http))

    def usable(self) -> Any:
        """The client, for the event loop that runs: connections belong to the loop that they were made in. Raises
        EngineError after `close`."""
        if self._closed:
            raise EngineError("This engine is closed: make a new one.")
        loop = anyio.lowlevel.current_token()
        if self._options is not None and self._loop not in (None, loop):
            self._old_clients.append(self.client)  # dropped, it would try to close itself in the wrong loop
            self.client = self._new_client(self._options)
        self._loop = loop
        return self.client.with_options(max_retries=0)  # the attempts are counted here

    def models_now(self) -> list[server.ServedModel]:
        """The server's models, asked for without an event loop. Raises EngineError if they can't be had."""
        if self._options is None:
            raise EngineError(
                "A client of your own isn't asked for the server's models: pass model= and max_context_size=."
            )
        http = self._make_http_sync(**self._http)
        given = {"max_retries": _PROBE_RETRIES, "timeout": _PROBE_SECONDS, "http_client": http}
        try:
            with self._make_sync(**self._options, **given) as client:
                return server.served_models(client.get("/models", cast_to=object))
        except self.failures as error:
            raise translated(error, self.url, "") from error

    async def models(self) -> list[server.ServedModel]:
        """The server's models. Raises EngineError if they can't be had."""
        client = self.usable()
        return server.served_models(await self.attempts(lambda: client.get("/models", cast_to=object)))

    async def completion(self, request: Mapping[str, Any]) -> Any:
        """The server's whole answer to a request. Raises one of `failures`."""
        answer = await self.usable().chat.completions.with_raw_response.create(**request)
        return json.loads(answer.content)

    async def chunks(self, request: Mapping[str, Any]) -> AsyncGenerator[Any]:
        """The JSON of a streamed answer, piece by piece, and DONE where the server says that this was all; a server
        that doesn't stream gives one piece. The connection is closed when this is. Raises one of `failures`."""
        # the package's own streams leave their generators open, of which trio warns
        create = self.usable().chat.completions.with_streaming_response.create
        whole: list[bytes] | None = []  # of an answer that is no stream
        async with create(**request) as response, aclosing(self._lines(response)) as lines:
            async for line in lines:
                if not line.startswith(b"data:"):
                    if whole is not None and not line.startswith(_OTHER_FIELDS):
                        whole.append(line)
                    continue
                whole, data = None, line[5:].strip()
                if data:  # to the end, so that the connection can be used again
                    yield DONE if data == b"[DONE]" else json.loads(data)
        if whole and (text := b"\n".join(whole)).strip():
            yield json.loads(text)

    async def _lines(self, response: Any) -> AsyncGenerator[bytes]:
        """The lines of an answer. Streams know these line ends only: JSON may hold others, such as U+2028."""
        pieces = response.http_response.aiter_bytes()
        rest = b""
        try:
            async for piece in pieces:
                *lines, rest = _LINE_END.split(rest + piece)
                for line in lines:
                    yield line
            yield rest
        finally:
            # the HTTP library leaves a generator open where it is not read to its end: that comes when it is closed
            await response.close()
            with anyio.move_on_after(_END_SECONDS), suppress(*self.failures):
                async for _ in pieces:
                    pass

    def check(self, said: Any, model: str, sent: Sequence[Mapping[str, Any]]) -> None:
        """Raises the error that a server sent in place of a reply, or within it, and ServerError for what is none."""
        if not isinstance(said, dict):
            raise ServerError(f"The server at {self.url} sent what is no reply: {said!r:.200}", temporary=True)
        if error := said.get("error") or (said if said.get("object") == "error" else None):
            raise told_error(error, self.url, model, sent)
        if odd := odd_part(said):
            raise ServerError(f"The server at {self.url} sent what is no reply ({odd}): is that OpenAI's API?")

    def unfinished(self, last: Any, begun: bool) -> ServerError:
        """The error for a reply that came to no end, or didn't begin; `last`: what the server sent last, if it did."""
        if begun or last is None:
            return ServerError(f"The server at {self.url} broke its reply off: try again.", temporary=True)
        return ServerError(f"The server at {self.url} answered without a reply: {last!r:.200}", temporary=True)

    def error(self, error: Exception, model: str, sent: Sequence[Mapping[str, Any]] = ()) -> KaniException:
        """The error to raise for one of `failures`."""
        return translated(error, self.url, model, sent)

    async def attempts(
        self, call: Callable[[], Awaitable[T]], model: str = "", sent: Sequence[Mapping[str, Any]] = ()
    ) -> T:
        """What a call returns, as soon as an attempt succeeds. Raises ServerError, or PromptTooLong."""
        failures = 0
        while True:
            try:
                return await call()
            except self._retried as error:
                failed = self.error(error, model, sent)
                if not isinstance(failed, ServerError):
                    raise failed from error
                if failed is not error:
                    failed.__cause__ = error
            failures += 1
            await self.wait_or_raise(failed, failures)

    async def wait_or_raise(self, failed: ServerError, failures: int) -> None:
        """Waits for the next attempt, or raises the error of the last one if there is to be none."""
        worth_it = failed.temporary and failures <= self.retry
        seconds = self.backoff.seconds(failures, failed.retry_after) if worth_it else None
        if seconds is None:
            raise failed
        await anyio.sleep(seconds)

    async def close(self) -> None:
        """Closes the connections; a client that was given stays open."""
        self._closed = True
        if self._options is not None:
            await self.client.close()


def _http_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the HTTP client is told for a server at this address."""
    address = urlsplit(str(options["base_url"] or ""))
    # reading the certificates takes long: once, and never in an event loop
    made: dict[str, Any] = {"verify": _httpx().create_ssl_context()}
    if address.scheme == "http":
        # a new connection costs little without TLS, and one that is kept outlives its event loop
        made["limits"] = _httpx().Limits(max_connections=1000, max_keepalive_connections=0)
    if address.hostname in ("localhost", "127.0.0.1", "::1"):
        made["trust_env"] = False  # a proxy can't know what this machine's own name means here
    return made


def _httpx() -> Any:
    """The HTTP library under the openai package, which comes with it."""
    return import_module("httpx2")


def _http_errors() -> tuple[type[Exception], ...]:
    """That library's errors, which come through where a stream is read."""
    return (_httpx().HTTPError, _httpx().StreamError)
