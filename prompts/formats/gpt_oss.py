"""OpenAI's harmony, which gpt-oss speaks: each part of a reply has a header that says its channel and recipient.

<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json
<|message|>{...}<|call|>
"""

import re

from ..calls import read_headed
from ..parsing import Format, Kind, Region

_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([^\s<]+)")


def route(header: str) -> tuple[Kind, str]:
    """What a header says: a recipient makes it a call, the analysis channel reasoning, anything else is text."""
    recipient = _RECIPIENT.search(header)
    if recipient and recipient[1] not in ("assistant", "user"):
        return Kind.CALL, recipient[1]
    return (Kind.REASONING if "analysis" in header else Kind.TEXT), ""


GPT_OSS = Format(
    "gpt-oss",
    (
        Region(Kind.HEADER, "<|start|>", ("<|message|>",)),
        Region(Kind.HEADER, "<|channel|>", ("<|message|>",)),
    ),
    dropped=("<|constrain|>",),
    read=read_headed,
    route=route,
    body_ends=("<|end|>", "<|return|>", "<|call|>"),
)
