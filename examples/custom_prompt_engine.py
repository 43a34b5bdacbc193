"""An engine for a model with a prompt format of its own: only `build_prompt` and `message_len` are written.

LlamaEngine, for Llama 2, is made the same way. Here the format is ChatML, written by hand, on the embedded model.
"""

import anyio

from kani_lite import AIFunction, ChatMessage, ChatRole, Kani
from kani_lite.engines import HuggingEngine
from kani_lite.engines.nano import WEIGHTS


class HandWrittenChatML(HuggingEngine):
    """Renders each message by itself, so the length of a prompt is the sum of the lengths of its messages."""

    def render(self, message: ChatMessage) -> str:
        role = "user" if message.role is ChatRole.FUNCTION else message.role.value
        return f"<|im_start|>{role}\n{message.text or ''}<|im_end|>\n"

    def build_prompt(self, messages: list[ChatMessage], functions: list[AIFunction] | None = None) -> str:
        return "".join(map(self.render, messages)) + "<|im_start|>assistant\n"

    def message_len(self, message: ChatMessage) -> int:
        return len(self.tokenizer.encode(self.render(message), add_special_tokens=False))


async def main() -> None:
    engine = HandWrittenChatML(str(WEIGHTS))
    ai = Kani(engine)
    for query in ("hello", "my favorite color is teal", "what is my favorite color?"):
        print(f"{query} -> {await ai.chat_round_str(query)}")
    await engine.close()


if __name__ == "__main__":
    anyio.run(main)
