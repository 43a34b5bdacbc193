"""Servers that speak as vLLM's does, or nearly: one of this process's, and a program to stand where vLLM should."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai_server import Request, Script, Step, serving

from kani_lite.engines.nano import WEIGHTS

CARD: dict[str, Any] = {"id": str(WEIGHTS), "max_model_len": 2048, "root": str(WEIGHTS), "parent": None}


@dataclass
class VLLMScript(Script):
    """`steps` answer the completions; `well`: what /health says."""

    well: int = 200

    def step_for(self, request: Request) -> Step:
        if request.path == "/health":
            return lambda exchange, _: exchange.send_bytes(b"", self.well)
        if request.path == "/v1/completions":
            return self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        return super().step_for(request)

    @property
    def completions(self) -> list[Any]:
        """The bodies of the requests for completions."""
        return [request.body for request in self.requests if request.path == "/v1/completions"]


@pytest.fixture
def script() -> Iterator[VLLMScript]:
    """A running server with the embedded model's name."""
    with serving(VLLMScript(models=[CARD])) as made:
        assert isinstance(made, VLLMScript)
        yield made


def chunk(text: str, ids: Sequence[int] | None, finish: str | None = None, **more: Any) -> bytes:
    """One event of a completion, as vLLM writes it: nothing of Unicode is escaped."""
    choice = {"index": 0, "text": text, "token_ids": ids, "finish_reason": finish, **more}
    said = {"choices": [{name: value for name, value in choice.items() if value is not None}]}
    return b"data: " + json.dumps(said, ensure_ascii=False).encode() + b"\n\n"


@pytest.fixture(name="chunk")
def _chunk() -> Callable[..., bytes]:
    return chunk


PYTHON = f"""#!{sys.executable}
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
BEFORE
def word(option):
    return sys.argv[sys.argv.index(option) + 1]
class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def reply(self, status, body=b""):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        GET
        known = self.headers.get("authorization") == "Bearer " + os.environ["VLLM_API_KEY"]
        if self.path == "/v1/models" and not known:
            return self.reply(401)
        models = [dict(id=word("--served-model-name"), max_model_len=512)]
        self.reply(200, json.dumps(dict(data=models)).encode() if self.path == "/v1/models" else b"")
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        POST
ThreadingHTTPServer((word("--host"), int(word("--port"))), Handler).serve_forever()
"""


@pytest.fixture
def fake_python(tmp_path: Path) -> Callable[..., str]:
    """Writes an executable to stand where a Python with vLLM should: a server whose key counts, and whose completions
    are what `post` does. `before`: what it does first; `get`: at each question but those."""

    def made(before: str = "", post: str = "self.reply(500)", get: str = "pass") -> str:
        file = tmp_path / "python"
        text = PYTHON.replace("BEFORE", before).replace(" GET\n", f" {get}\n").replace(" POST\n", f" {post}\n")
        file.write_text(text)
        file.chmod(0o755)
        return str(file)

    return made
