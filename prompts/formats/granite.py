"""Granite 3: a JSON list after `<|tool_call|>` or `<tool_call>`. Granite 4 speaks Hermes."""

from ..parsing import Format, Kind, Region
from .hermes import THINK

GRANITE = Format(
    "granite",
    (
        THINK,
        Region(Kind.CALL, "<|tool_call|>", ("<|end_of_text|>",), until_next=True),
        Region(Kind.CALL, "<tool_call>", ("</tool_call>", "<|end_of_text|>"), until_next=True),
    ),
    dropped=("<|end_of_text|>", "<response>", "</response>"),
)
