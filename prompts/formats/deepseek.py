"""DeepSeek V3 and V3.1, and R1, whose replies may begin inside the reasoning."""

from dataclasses import replace

from ..calls import read_deepseek
from ..parsing import Format, Kind, Region
from .hermes import THINK

_CALL = Region(Kind.CALL, "<｜tool▁call▁begin｜>", ("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"), until_next=True)
# the blocks around the calls; those of results are the prompt's, but models write them too
_AROUND = [f"<｜tool▁{block}▁{side}｜>" for block in ("calls", "outputs", "output") for side in ("begin", "end")]
DEEPSEEK_V3 = Format("deepseek-v3", (THINK, _CALL), dropped=(*_AROUND, "<｜end▁of▁sentence｜>"), read=read_deepseek)
DEEPSEEK_R1 = replace(DEEPSEEK_V3, name="deepseek-r1", inside=THINK)
