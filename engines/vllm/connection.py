"""Requests to vLLM's server over HTTP."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from kani_lite.exceptions import EngineError

from .models import ServedModel, served_models
from .package import http_client

_SECONDS_TO_CONNECT = 10.0
_SECONDS_FOR_HEALTH = 5.0
_MOST_OF_AN_ERROR = 600  # characters
_LINE_END = re.compile(rb"\r\n|\n|\r")  # of server-sent events; what Unicode has besides may be in a text


class ConnectionBroken(EngineError):
    """The server is gone, or may be about to go; one that somebody else runs may come back."""

    temporary = True


class Connection:
    """Where a server is and how to ask it. `timeout`: the most seconds of silence; `local`: a server of our own, which
    no proxy is asked for. Works on asyncio and on trio, and on several event loops: each request has a connection of
    its own, and cutting that is how the server learns that nobody wants the reply any more."""

    def __init__(self, address: str, api_key: str | None, timeout: float, *, local: bool) -> None:
        self._httpx = http_client("VLLMServerEngine")
        self.address = address.rstrip("/").removesuffix("/v1")
        try:
            self._httpx.URL(self.address)
        except self._httpx.InvalidURL as error:
            raise EngineError(
                f"address={address!r} is none ({error}): give one such as 'http://gpu-box:8000'."
            ) from error
        self._options: dict[str, Any] = {
            "base_url": self.address,
            "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
            "timeout": self._httpx.Timeout(timeout, connect=_SECONDS_TO_CONNECT),
            "trust_env": not local,
            "verify": ssl.create_default_context(),  # reading the certificates takes long: once, and not in a loop
        }

    def healthy(self) -> bool:
        """Whether the server is up. Blocks."""
        return self._status_without_key("/health") == 200

    def guarded(self) -> bool:
        """Whether it refuses those who have no key. Blocks."""
        return self._status_without_key("/v1/models") == 401

    def _status_without_key(self, path: str) -> int | None:
        try:
            with self._httpx.Client(**(self._options | {"headers": {}})) as client:
                return int(client.get(path, timeout=_SECONDS_FOR_HEALTH).status_code)
        except self._httpx.TransportError:
            return None

    def models(self) -> list[ServedModel]:
        """The models and adapters that the server has. Blocks. Raises EngineError, also if it isn't vLLM's."""
        try:
            with self._httpx.Client(**self._options) as client:
                answer = client.get("/v1/models", timeout=_SECONDS_TO_CONNECT)
        except self._httpx.TransportError as error:
            raise self._unreachable(error) from error
        if answer.status_code in (401, 403) or answer.status_code >= 500:
            raise self._refusal(answer.status_code, answer.text)
        try:
            found = served_models(answer.json())
        except ValueError:
            found = None
        if answer.status_code != 200 or found is None:
            raise EngineError(
                f"The server at {self.address} lists no models as vLLM's does: its /v1/models says "
                f"{answer.text[:80]!r} ({answer.status_code}); check the address."
            )
        return found

    async def completion(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The chunks of the server's reply. Raises EngineError; ConnectionBroken if the server may be gone."""
        try:
            async with (
                self._httpx.AsyncClient(**self._options) as client,
                client.stream("POST", "/v1/completions", json=body) as answer,
            ):
                if answer.status_code != 200:
                    raise self._refusal(answer.status_code, (await answer.aread()).decode("utf-8", "replace"))
                if not body.get("stream"):
                    yield _read(await answer.aread())
                    return
                ended = False
                async with aclosing(_lines(answer)) as lines:
                    async for line in lines:
                        data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
                        if data == b"[DONE]":
                            ended = True
                        elif data:
                            yield _read(data)
                if not ended:
                    raise self._cut("the stream ended before its end")
        except self._httpx.ReadTimeout as error:
            seconds = self._options["timeout"].read
            raise EngineError(
                f"The server at {self.address} was silent for timeout={seconds:g} seconds: it hangs, or has too much "
                "to do."
            ) from error
        except self._httpx.TransportError as error:
            raise self._cut(_said(error)) from error

    def _cut(self, why: str) -> ConnectionBroken:
        return ConnectionBroken(f"The connection to the server at {self.address} broke ({why}).")

    def _unreachable(self, error: Exception) -> ConnectionBroken:
        return ConnectionBroken(
            f"There is no server at {self.address} ({_said(error)}): check the address, or start it."
        )

    def _refusal(self, status: int, text: str) -> EngineError:
        if status in (401, 403):
            return EngineError(f"The server at {self.address} wants another api_key ({status}).")
        if status >= 500:
            return ConnectionBroken(f"vLLM's server failed this request ({status}): {_message(text)}")
        return EngineError(f"vLLM's server refuses this request ({status}): {_message(text)}")


async def _lines(answer: Any) -> AsyncGenerator[bytes]:
    """The lines of an answer; one that is empty may come besides."""
    begun: list[bytes] = []
    async with aclosing(answer.aiter_bytes()) as pieces:
        async for piece in pieces:
            first, *more = _LINE_END.split(piece)
            begun.append(first)
            for line in more:
                yield b"".join(begun)
                begun = [line]
    yield b"".join(begun)


def _read(data: bytes) -> dict[str, Any]:
    """One chunk. Raises EngineError if it refuses the request, ConnectionBroken if it tells of another error or isn't
    JSON."""
    try:
        chunk = json.loads(data)
    except ValueError as error:
        raise ConnectionBroken(f"vLLM's server sent what isn't JSON: {data[:80]!r}") from error
    if isinstance(chunk, dict) and "error" not in chunk and chunk.get("object") != "error":
        return chunk
    told = chunk.get("error", chunk) if isinstance(chunk, dict) else {}
    code = told.get("code") if isinstance(told, dict) else None
    message = _message(json.dumps(chunk))
    if isinstance(code, int) and 400 <= code < 500:
        raise EngineError(f"vLLM's server refuses this request ({code}): {message}")
    raise ConnectionBroken(f"vLLM's server failed this request: {message}")


def _message(text: str) -> str:
    try:
        found = json.loads(text)
        found = found.get("error", found)
        text = str(found.get("message", found) if isinstance(found, dict) else found)
    except (ValueError, AttributeError):
        pass  # plain text
    return " ".join(text.split())[:_MOST_OF_AN_ERROR]


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
