"""Gemma 2 and 3, which have no markers for calls: Gemma 3 is asked for Python, in a list or in a
`tool_code` block, or for JSON."""

from ..calls import read_bare_list, read_python
from ..parsing import Format, Kind, Region

GEMMA = Format(
    "gemma",
    (Region(Kind.CALL, "```tool_code", ("```",)),),
    dropped=("<end_of_turn>",),
    read=read_python,
    bare=read_bare_list,
)
