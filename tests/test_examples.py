"""Each example runs as it stands, and says what it should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

EXAMPLES = Path(__file__).parent.parent / "examples"
SAYS = {
    "quick_start.py": ["Nice to meet you, Ada!", "Your name is Ada."],
    "tool_agent.py": [
        'CALL: get_price({"product": "honey"})',
        "AI: The price of honey is 6.0 euros.",
        "orders: [('coffee', 3)]",
    ],
    "custom_prompt_engine.py": ["my favorite color? -> Your favorite color is teal."],
    "custom_engine.py": ["Nice to meet you, Ada!", "Your name is Ada."],
    "last_four_messages.py": [
        "My name is Ada. -> Nice to meet you, Ada!",
        "What is my name? -> You have not told me your name yet.",
        "8 messages in the history",
    ],
    "sub_agents.py": ["  warehouse assistant: count_stock", "clerk: The stock of coffee is 12."],
}
SERVERS = ["websocket_chat.py"]  # they run until they are stopped


def test_all_are_listed() -> None:
    assert sorted(p.name for p in EXAMPLES.glob("*.py")) == sorted([*SAYS, *SERVERS])


@pytest.mark.parametrize("name", SAYS)
def test_example(name: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    for line in SAYS[name]:
        assert line in done.stdout


def said(socket: ClientConnection, query: str) -> list[dict[str, Any]]:
    """The events of a round, as the websocket's client gets them."""
    socket.send(query)
    events = [json.loads(socket.recv(timeout=60))]
    while events[-1]["event"] != "RoundEnd":
        events.append(json.loads(socket.recv(timeout=60)))
    return events


def text(events: list[dict[str, Any]]) -> str:
    return "".join(e["text"] for e in events if e["event"] == "TextDelta")


def test_websocket_chat(tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / "websocket_chat.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        try:
            assert server.stdout is not None
            address = f"ws://127.0.0.1:{server.stdout.readline().split()[-1]}"
            with connect(address) as ada, connect(address) as bob:
                assert text(said(ada, "my name is Ada")) == "Nice to meet you, Ada!"
                assert text(said(bob, "my name is Bob")) == "Nice to meet you, Bob!"
                assert text(said(ada, "what is my name?")) == "Your name is Ada."

                events = said(bob, "get the price of honey")
                finished = next(e["call"]["function"] for e in events if e["event"] == "ToolCallFinished")
                assert finished == {"name": "get_price", "arguments": '{"product": "honey"}'}
                result = next(e["message"] for e in events if e["event"] == "ToolResult")
                assert (result["role"], result["content"]) == ("function", "The price of honey is 6 euros.")
                assert text(events) == "The price of honey is 6 euros."

                bob.send("/stop")  # with nothing to stop
                assert text(said(bob, "what is my name?")) == "Your name is Bob."
        finally:
            server.terminate()
