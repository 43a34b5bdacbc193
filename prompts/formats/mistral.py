"""Mistral from v0.3 on: a JSON list after `[TOOL_CALLS]`, or one `[TOOL_CALLS]name[ARGS]{...}` a call."""

from ..calls import read_mistral
from ..parsing import Format, Kind, Region

MISTRAL = Format(
    "mistral",
    (
        Region(Kind.CALL, "[TOOL_CALLS]", ("</s>",), until_next=True),
        Region(Kind.REASONING, "[THINK]", ("[/THINK]",)),
    ),
    dropped=("</s>",),
    read=read_mistral,
)
