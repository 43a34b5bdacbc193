"""Cohere's Command R: fenced JSON after `Action:`; Command R7B and A have markers for each part."""

from ..calls import read_fenced
from ..parsing import Format, Kind, Region

COMMAND_R = Format(
    "command-r",
    (
        Region(Kind.CALL, "Action: ```json", ("<|END_OF_TURN_TOKEN|>",)),
        Region(Kind.CALL, "Action:```json", ("<|END_OF_TURN_TOKEN|>",)),
    ),
    dropped=("<|END_OF_TURN_TOKEN|>",),
    read=read_fenced,
)
COMMAND_R7B = Format(
    "command-r7b",
    (
        Region(Kind.REASONING, "<|START_THINKING|>", ("<|END_THINKING|>",)),
        Region(Kind.CALL, "<|START_ACTION|>", ("<|END_ACTION|>",), until_next=True),
    ),
    dropped=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>", "<|START_TEXT|>", "<|END_TEXT|>"),
)
