"""A chatbot served over a websocket: each connection is a chat of its own, all of them on one engine.

A client sends what the user says as text, and gets the events of the round as JSON objects. To stop a reply it sends
`/stop`; the chat goes on with its next message. Needs `pip install websockets`.

    python examples/websocket_chat.py [PORT]
"""

import json
import sys
from dataclasses import asdict
from functools import partial

import anyio
from websockets.asyncio.server import ServerConnection, serve

from kani_lite import AIFunction, Kani
from kani_lite.engines import BaseEngine, NanoEngine
from kani_lite.events import Event, MessageAdded, ToolResult


def get_price(product: str) -> str:
    """Get the price of a product."""
    return f"The price of {product} is 6 euros."


def to_json(event: Event) -> str:
    """An event as the page gets it: its name, and what it holds."""
    if isinstance(event, MessageAdded | ToolResult):
        held = {"message": event.message.model_dump(mode="json")}
    else:
        held = asdict(event)
    return json.dumps({"event": type(event).__name__, **held}, default=lambda value: value.model_dump(mode="json"))


async def answer(ai: Kani, query: str, socket: ServerConnection) -> None:
    async with ai.events(query) as events:
        async for event in events:
            await socket.send(to_json(event))


async def chat(engine: BaseEngine, socket: ServerConnection) -> None:
    ai = Kani(engine, functions=[AIFunction(get_price)])
    async with anyio.create_task_group() as tasks:
        reply = anyio.CancelScope()

        async def run(query: str, scope: anyio.CancelScope) -> None:
            with scope:
                await answer(ai, query, socket)

        async for said in socket:
            if said == "/stop":
                reply.cancel()  # the model stops within a step, and the history stays valid
            else:
                reply = anyio.CancelScope()
                tasks.start_soon(run, str(said), reply)
        tasks.cancel_scope.cancel()  # the client has gone


async def main(port: int = 0) -> None:
    engine = NanoEngine()
    async with serve(partial(chat, engine), "127.0.0.1", port) as server:
        print("listening on", server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 0)
