"""Phi 3 and 4, which reason but have no calls, and Phi-4-mini, which has: between markers of its own, after
`functools`, or as bare JSON, as its templates have it."""

from ..calls import read_bare_json, read_functools
from ..parsing import Format, Kind, Region
from .hermes import THINK

_ENDS = ("<|end|>", "<|im_end|>", "<|endoftext|>")
PHI = Format("phi", (THINK,), dropped=_ENDS)
PHI4_MINI = Format(
    "phi-4-mini",
    (
        THINK,
        Region(Kind.CALL, "<|tool_call|>", ("<|/tool_call|>",), until_next=True),
        Region(Kind.CALL, "functools[{", ("<|end|>",), until_next=True),
    ),
    dropped=_ENDS,
    read=read_functools,
    bare=read_bare_json,
)
