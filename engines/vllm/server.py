"""VLLMServerEngine: vLLM in a server process of its own, or one that is running already."""

from __future__ import annotations

import secrets
import socket
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import anyio
import anyio.to_thread

from kani_lite.engines.sampling import SamplingParams
from kani_lite.engines.text_generation import Generation, TokenLogprobs
from kani_lite.engines.worker import CLOSED
from kani_lite.exceptions import EngineError
from kani_lite.functions import AIFunction

from .arguments import Arguments, command_line, option_names
from .base import VLLMPromptedEngine
from .connection import Connection, ConnectionBroken
from .memory import device_bytes
from .models import ServedModel, chosen_model
from .package import http_client, quiet_environment, require_vllm
from .process import ManagedProcess
from .reply import Reply, of_server, of_server_prompt
from .sampling import server_fields

_MODULE = "vllm.entrypoints.openai.api_server"  # `vllm serve` is a script, which a PATH need not have
_LOOK = 0.1  # seconds between two questions whether the server is up
_LAST_WORDS = 10.0  # seconds that a server may take to end after it has cut a reply
_KEY = "VLLM_API_KEY"
# options of the server that are arguments of the engine, by another name
_NAMED = {
    "host": "vllm_host=",
    "port": "vllm_port=",
    "served_model_name": "served_model=",
    "lora_modules": "adapters=",
    "api_key": "api_key=",
    "model": "model_id=",
    "hf_token": "token=",
    "max_model_len": "max_context_size=",
    "gpu_memory_utilization": "gpu_memory_reserved=",
}


class VLLMServerEngine(VLLMPromptedEngine):
    """Runs a model with vLLM's OpenAI server, as token ids in and out. Arguments are those of VLLMPromptedEngine, and:

    By default it starts a server of its own, on `vllm_host` and `vllm_port` (a free one), with `vllm_args` as further
    arguments of its command line and `environment` as further environment variables, and waits until it is up, at most
    `timeout` seconds. The server ends with the engine, and with this process, however that ends. `python` is that of
    another environment which has vLLM.

    With `address` ("http://gpu-box:8000"), or `use_managed_server=False` and the port, it uses a running server:
    `model_id` is then the model whose tokenizer the server has, `served_model` its name there if that is another, and
    `adapters` need no folders that are here. `api_key` is the server's; a server of our own gets a random one, so that
    no other user of the machine can use it.

    `timeout` also is the most seconds that the server may be silent while it works on a request.

    Raises EngineError, with the server's last lines, if it can't be started, MissingModelDependencies if a package is
    missing.
    """

    def __init__(
        self,
        *args: Any,
        address: str | None = None,
        api_key: str | None = None,
        served_model: str | None = None,
        timeout: float = 600.0,
        vllm_args: Mapping[str, Any] | Sequence[str] = (),
        vllm_host: str = "127.0.0.1",
        vllm_port: int | None = None,
        use_managed_server: bool = True,
        environment: Mapping[str, str] | None = None,
        python: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not use_managed_server and address is None:
            if vllm_port is None:
                raise EngineError(
                    "use_managed_server=False needs the address= or the vllm_port= of the running server."
                )
            address = f"http://{vllm_host}:{vllm_port}"
        if address is None and python is None:
            require_vllm("VLLMServerEngine")
        http_client("VLLMServerEngine")
        self.process: ManagedProcess | None = None
        self._managed = address is None
        self._host, self._port = vllm_host, vllm_port
        self._python, self._environment = python or sys.executable, environment or {}
        self._words = command_line(vllm_args) if isinstance(vllm_args, Mapping) else list(vllm_args)
        if _KEY in self._environment:
            raise EngineError(f"environment has {_KEY}: give the key as api_key=.")
        self._connection: Connection | None = None
        self._address, self._served, self._timeout = address, served_model, timeout
        self.api_key = api_key if address is not None else api_key or secrets.token_urlsafe(24)
        super().__init__(*args, **kwargs)

    def load(self, arguments: Arguments) -> str:
        name = super().load(arguments)
        self._served = self._served or (name if self._managed else None)
        return name

    def start(self, arguments: Arguments) -> None:
        if self._address is None:
            self._start_server(arguments)
        assert self._address is not None
        self._connection = Connection(self._address, self.api_key, self._timeout, local=self._managed)
        try:
            if self._managed:
                self._wait_until_up(self._connection)
            self._note_models(arguments, self._connection.models())
        except BaseException:
            self._end_server()
            raise

    @property
    def address(self) -> str:
        """Where the server is, as in "http://127.0.0.1:8000"; its API is below `/v1`."""
        return self._address or ""

    # ==== the server ====

    def _start_server(self, arguments: Arguments) -> None:
        loras = [f"{name}={folder}" for name, folder in self.adapters.items()]
        own: dict[str, Any] = {
            "served_model_name": self._served,
            "enable_prompt_tokens_details": True,
            "generation_config": "vllm",
            "lora_modules": loras or None,
        }
        self._check_repeated(arguments, {"host", "port", *own})
        port = _free_port(self._host, self._port)
        own |= {"host": self._host, "port": port}
        self._address = f"http://[{self._host}]:{port}" if ":" in self._host else f"http://{self._host}:{port}"
        token = {"HF_TOKEN": arguments.token} if isinstance(arguments.token, str) else {}
        environment = {**quiet_environment(), **token, **self._environment}
        engine_args = arguments.for_vllm(lambda: device_bytes(self._python, environment)) | {"model": self.model_id}
        words = command_line({name: value for name, value in (engine_args | own).items() if name != "hf_token"})
        command = [self._python, "-m", _MODULE, *words, *self._words]
        # secrets go through the environment: anyone can see a command line
        self.process = ManagedProcess(command, environment | {_KEY: self.api_key or ""}, name="vLLM's server")

    def _check_repeated(self, arguments: Arguments, own: set[str]) -> None:
        """Raises EngineError for an option of the server that would silently win against another, or lose."""
        given = {*own, "api_key", "model", "hf_token"}
        for name in sorted(given & arguments.more.keys()):
            raise _repeated("engine_args", name)
        given |= {*arguments.given(), *arguments.more}
        if arguments.gpu_memory_reserved is not None:
            given |= {"gpu_memory_utilization", "kv_cache_memory_bytes"}
        for name in sorted(given & option_names(self._words)):
            raise _repeated("vllm_args", name)

    def _wait_until_up(self, connection: Connection) -> None:
        assert self.process is not None
        until = time.monotonic() + self._timeout
        while not connection.healthy():
            self.process.check_alive("while it started")
            if time.monotonic() > until:
                raise EngineError(
                    f"vLLM's server wasn't up after timeout={self._timeout:g} seconds. {self.process.said()}"
                )
            time.sleep(_LOOK)
        guarded = connection.guarded()
        self.process.check_alive("while it started")
        if not guarded:
            raise EngineError(
                f"Another server has taken {self.address} while ours started: give another vllm_port=, or none for a "
                "free one."
            )

    def _note_models(self, arguments: Arguments, models: Sequence[ServedModel]) -> None:
        served = chosen_model(models, self._served, self.model_id, self.address)
        self._served, asked = served.name, arguments.max_model_len
        if served.context is None and asked is None:
            raise EngineError(
                f"The server at {self.address} doesn't say how long the context of {served.name!r} is: pass "
                "max_context_size=."
            )
        if asked is not None and served.context is not None and asked > served.context:
            raise EngineError(f"The server at {self.address} has a context of {served.context} tokens, not {asked}.")
        self.max_context_size = asked or served.context or 0
        names = [model.name for model in models]
        missing = [name for name in self.adapters if name not in names]
        if missing:
            raise EngineError(f"The server at {self.address} has no adapter {missing[0]!r}: it has {names}.")

    def _end_server(self) -> None:
        if self.process is not None:
            self.process.close()

    # ==== requests ====

    def check_open(self) -> None:
        self._open()

    def _open(self) -> Connection:
        if self._connection is None:
            raise EngineError(CLOSED)
        if self.process is not None:
            self.process.check_alive("while nothing was asked of it")
        return self._connection

    async def run(
        self,
        ids: list[int],
        params: SamplingParams,
        *,
        banned: Sequence[int] = (),
        functions: Sequence[AIFunction] = (),
        streamer: Any = None,
    ) -> AsyncGenerator[str | Generation]:
        connection = self._open()
        body = self._body(ids, params, *self.request(ids, params, banned, functions, streamer))
        reply = Reply()
        try:
            async with aclosing(connection.completion(body)) as chunks:
                async for chunk in chunks:
                    if text := _taken(reply, chunk, ids, params):
                        yield text
        except ConnectionBroken as error:
            raise await self._explained(error, connection) from error
        yield reply.generation()

    def _body(
        self, ids: Sequence[int], params: SamplingParams, fields: dict[str, Any], grammar: str | None
    ) -> dict[str, Any]:
        # the server gives what the prompt's tokens had only with the whole reply
        stream = params.prompt_logprobs is None
        body = {
            **server_fields(fields),
            "model": getattr(params, "adapter", None) or self._served,
            "prompt": list(ids),
            "stream": stream,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        if grammar is not None:
            body["structured_outputs"] = {"structural_tag": grammar}
        return body

    async def _explained(self, error: EngineError, connection: Connection) -> EngineError:
        """The error with what our own server has said last; that it has ended, if it has."""
        process = self.process
        if process is None:
            return error
        with anyio.CancelScope(shield=True):
            if await anyio.to_thread.run_sync(_ends, process, connection):
                return await anyio.to_thread.run_sync(process.death, "while it ran a request")
        return ConnectionBroken(f"{error} {process.said()}")

    async def close(self) -> None:
        """Ends the server if it is our own, and with it running requests. May be called again."""
        await super().close()
        self._connection = None
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._end_server)


def _taken(reply: Reply, chunk: Mapping[str, Any], prompt: Sequence[int], params: SamplingParams) -> str:
    """The text of the server's next chunk for this reply. Raises EngineError if it isn't as vLLM writes it."""
    usage = chunk.get("usage") or {}
    if cached := (usage.get("prompt_tokens_details") or {}).get("cached_tokens"):
        reply.cached_tokens = int(cached)
    if not chunk.get("choices"):
        return ""
    part = chunk["choices"][0]
    ids, text = part.get("token_ids"), part.get("text") or ""
    if ids is None and text:
        raise _not_vllms(f"text without token ids: {text[:80]!r}")
    ids = ids or []
    logprobs: list[TokenLogprobs] | None = None
    try:
        if params.logprobs is not None:
            found = part.get("logprobs")
            logprobs = of_server(ids, found, params.logprobs) if found else []
        if params.prompt_logprobs is not None and part.get("prompt_logprobs"):
            reply.prompt_logprobs = of_server_prompt(prompt, part["prompt_logprobs"], params.prompt_logprobs)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_vllms(f"logprobs that aren't those of its tokens ({error!r})") from error
    reply.finish_reason = part.get("finish_reason") or reply.finish_reason
    return reply.add(ids, text, logprobs)


def _not_vllms(sent: str) -> EngineError:
    return EngineError(
        f"The server sent {sent}. It isn't vLLM's, or is one that is too old: use OpenAIEngine with its address."
    )


def _ends(process: ManagedProcess, connection: Connection) -> bool:
    """Whether the server ends now: one that doesn't, and is well, isn't waited for. Blocks."""
    if not process.wait(_LOOK) and connection.healthy():  # asked once: it logs each question, over what it said last
        return False
    return process.wait(_LAST_WORDS)


def _repeated(where: str, name: str) -> EngineError:
    way = f"give it as {_NAMED[name]}" if name in _NAMED else "leave it out"
    return EngineError(f"{where} has {name!r}, which the server is told already: {way}.")


def _free_port(host: str, port: int | None) -> int:
    """This port, or one that is free. Raises EngineError if a server can't have it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what is left of old connections is no server
        try:
            taken.bind((host, port or 0))
        except (OSError, OverflowError) as error:
            raise EngineError(
                f"vllm_port={port} on vllm_host={host!r} can't be had ({error}): give another, or no port for any."
            ) from error
        found: int = taken.getsockname()[1]
        return found
