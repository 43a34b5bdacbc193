"""A chat whose prompt holds the last four messages and no more: `get_prompt` chooses what the model sees."""

from typing import Any

import anyio

from kani_lite import ChatMessage, Kani
from kani_lite.engines import NanoEngine


class LastFour(Kani):
    async def get_prompt(self, include_functions: bool = True, **kwargs: Any) -> list[ChatMessage]:
        return self.always_included_messages + self.chat_history[-4:]


async def main() -> None:
    engine = NanoEngine()
    ai = LastFour(engine)
    for query in ("My name is Ada.", "thanks", "how are you?", "What is my name?"):
        print(f"{query} -> {await ai.chat_round_str(query)}")
    print(len(ai.chat_history), "messages in the history")
    await engine.close()


if __name__ == "__main__":
    anyio.run(main)
