"""ChatML and its tool calls: Hermes 2 Pro, Qwen 2.5 and 3, Granite 4, SmolLM 3; in Qwen3-Coder and Qwen 3.5 as XML."""

from dataclasses import replace

from ..calls import read_tagged
from ..parsing import Format, Kind, Region

THINK = Region(Kind.REASONING, "<think>", ("</think>",))
CHATML = Format("chatml", (THINK,), dropped=("<|im_end|>",))
HERMES = Format(
    "hermes",
    (THINK, Region(Kind.CALL, "<tool_call>", ("</tool_call>",), until_next=True)),
    dropped=("<|im_end|>",),
    read=read_tagged,
)
QWEN3_CODER = replace(HERMES, name="qwen3-coder")
