"""A conversation of two rounds with the embedded model: no download, no key."""

import anyio

from kani_lite import Kani
from kani_lite.engines import NanoEngine


async def main() -> None:
    engine = NanoEngine()
    ai = Kani(engine)
    print(await ai.chat_round_str("My name is Ada."))
    async for token in ai.chat_round_stream("What is my name?"):
        print(token, end="", flush=True)
    print()
    await engine.close()


if __name__ == "__main__":
    anyio.run(main)
