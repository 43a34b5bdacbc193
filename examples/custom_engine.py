"""An engine of one's own, written from nothing: it runs a bare transformers model and knows no other base class."""

import anyio

from kani_lite import ChatMessage, Kani
from kani_lite.engines import BaseEngine, Completion
from kani_lite.engines.nano import WEIGHTS


class BareEngine(BaseEngine):
    max_context_size = 2048

    def __init__(self, folder):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def build_prompt(self, messages):
        chat = [{"role": m.role.value, "content": m.text} for m in messages]
        return self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]

    def prompt_len(self, messages, functions=None, **kwargs):
        return self.build_prompt(messages).shape[1]

    async def predict(self, messages, functions=None, **hyperparams):
        prompt = self.build_prompt(messages)
        output = await anyio.to_thread.run_sync(lambda: self.model.generate(prompt, max_new_tokens=100, **hyperparams))
        reply = output[0, prompt.shape[1] :]
        text = self.tokenizer.decode(reply, skip_special_tokens=True)
        return Completion(ChatMessage.assistant(text), prompt.shape[1], len(reply))


async def main() -> None:
    ai = Kani(BareEngine(WEIGHTS))
    for query in ("My name is Ada.", "What is my name?"):
        print(await ai.chat_round_str(query))


if __name__ == "__main__":
    anyio.run(main)
