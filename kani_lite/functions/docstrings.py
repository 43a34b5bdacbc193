"""What a docstring says about a function and about its parameters."""

from __future__ import annotations

import re

_GOOGLE = re.compile(r"^[ \t]*(?:Args|Arguments|Parameters|Params):[ \t]*$", re.MULTILINE)
_NUMPY = re.compile(r"^[ \t]*Parameters[ \t]*\n[ \t]*-{3,}[ \t]*$", re.MULTILINE)
_REST = re.compile(r"^[ \t]*:(?:param|parameter|arg|argument|key|keyword)\s[^:\n]*:", re.MULTILINE)


def split_docstring(doc: str) -> tuple[str | None, dict[str, str]]:
    """The description of the function, and that of each parameter. A docstring without a section for parameters is
    all description; one with such a section loses it, and the other sections (Returns, Raises) with it."""
    styles = {"GOOGLE": _GOOGLE, "NUMPYDOC": _NUMPY, "REST": _REST}
    style = next((name for name, pattern in styles.items() if pattern.search(doc)), None)
    if style is None:
        return doc or None, {}
    # most docstrings don't get here, and the import is slow
    import docstring_parser

    try:
        parsed = docstring_parser.parse(doc, docstring_parser.DocstringStyle[style])
    except docstring_parser.ParseError:
        return doc, {}
    params: dict[str, str] = {}
    for entry in parsed.params:
        if entry.description:
            text = " ".join(entry.description.split())
            # NumPy allows "x, y : int"
            params |= {name.strip().lstrip("*"): text for name in entry.arg_name.split(",")}
    return parsed.description or None, params
