"""DeepSeek V3 and V3.1, and R1, whose replies may begin inside the reasoning."""

from dataclasses import replace

from ..calls import read_deepseek
from ..parsing import Format, Kind, Region
from .hermes import THINK

_CALL = Region(Kind.CALL, "<｜tool▁call▁begin｜>", ("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"), until_next=True)
DEEPSEEK_V3 = Format(
    "deepseek-v3",
    (
        THINK,
        Region(Kind.CALL, "<｜tool▁call▁begin｜>", ("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"), until_next=True),
    ),
    dropped=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜end▁of▁sentence｜>"),
    read=read_deepseek,
)
DEEPSEEK_R1 = replace(DEEPSEEK_V3, name="deepseek-r1", inside=THINK)
