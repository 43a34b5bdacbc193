"""Llama 2, which has no calls, and Llama 3.x: JSON or Python without markers, or after `<|python_tag|>`."""

from ..calls import read_bare_list, read_python
from ..parsing import Format, Kind, Region

LLAMA2 = Format("llama2", dropped=("</s>",))
LLAMA3 = Format(
    "llama3",
    (Region(Kind.CALL, "<|python_tag|>", ("<|eom_id|>", "<|eot_id|>"), until_next=True),),
    dropped=("<|eom_id|>", "<|eot_id|>"),
    read=read_python,
    bare=read_bare_list,
)
