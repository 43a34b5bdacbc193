"""Text from a model or a tool, made safe to print: nothing in it can move the cursor, recolour or retitle a terminal.

Every control character is written out as a visible escape by itself. No sequence needs to be recognised, so it makes
no difference how a stream is cut into chunks, and no state is carried from one chunk to the next.
"""

from __future__ import annotations

_KEPT = "\n\t"
# C0, DEL, C1; line and paragraph separators; embeddings, overrides and isolates of bidirectional text; surrogates,
# which no terminal's encoding can carry
_RANGES = ((0x00, 0x1F), (0x7F, 0x9F), (0x2028, 0x2029), (0x202A, 0x202E), (0x2066, 0x2069), (0xD800, 0xDFFF))


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


_TABLE = {code: _escape(code) for first, last in _RANGES for code in range(first, last + 1) if chr(code) not in _KEPT}


def sanitize(text: str) -> str:
    """The text with control characters (all but newline and tab) as visible escapes such as `\\x1b`.

    `sanitize(a) + sanitize(b) == sanitize(a + b)`: a stream may be passed through chunk by chunk.
    """
    return text.translate(_TABLE)
